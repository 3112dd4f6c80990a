"""Lists of ended samples, as the SDK asks for them where `client/config` says so."""

import pytest
from tinker import types

pytestmark = pytest.mark.timeout(240)


def test_the_sdk_hears_of_samples_by_lists(tinker_service):
    config = tinker_service.holder._client_config
    wanted = {"sample_use_retrieve_futures": True}  # as client/config might say it
    tinker_service.holder._client_config = config.model_copy(update=wanted)
    sampler = tinker_service.create_sampling_client(base_model="farstep/tiny").result()
    prompt = types.ModelInput.from_ints([1, 40, 41])
    futures = [sampler.sample(prompt, 1, types.SamplingParams(max_tokens=4, seed=seed)) for seed in range(6)]
    wrong = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=4, temperature=-1.0))
    assert [len(future.result(timeout=120).sequences) for future in futures] == [1] * 6
    with pytest.raises(Exception, match="temperature"):
        wrong.result(timeout=120)


def test_a_list_of_nobodys_session_is_not_found(raw):
    target = {"type": "sampling_session", "sampling_session_id": "session-0:sample:0", "cloned_sampler_id": 0}
    response = raw.post("retrieve_futures", json={"target": target, "prev_cursor": 0, "timeout": 0})
    assert response.status_code == 404
    assert raw.post("retrieve_futures", json={"target": {}, "prev_cursor": -1}).status_code == 400


def test_a_large_result_is_announced_before_it_is_sent(tinker_service, raw):
    """The SDK makes room for it first; of candidates for each token there are enough."""
    sampler = tinker_service.create_sampling_client(base_model="farstep/tiny").result()
    num, length, k = 64, 128, 128
    params = types.SamplingParams(max_tokens=length, seed=1, stop=[])
    found = sampler.sample(types.ModelInput.from_ints([5, 6, 7]), num, params, topk_sample_logprobs=k).result()
    assert {(len(each.tokens), len(each.topk_logprobs), len(each.topk_logprobs[0])) for each in found.sequences} == {
        (length, length, k)
    }
    [sequence_id, *_] = [each.sequence_id for each in found.sequences]
    ask = {"request_id": sequence_id.rpartition(":")[0], "allow_metadata_only": True}
    announced = raw.post("retrieve_future", json=ask).json()
    whole = raw.post("retrieve_future", json={**ask, "allow_metadata_only": False})
    assert announced == {"status": "complete_metadata", "response_payload_size": len(whole.content)}
    assert len(whole.content) > num * length * k * 8
