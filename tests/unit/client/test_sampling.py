"""The SamplingClient."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import farstep
from farstep import ModelInput, SamplingParams
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, MAX_SEQ_LEN, VOCAB_SIZE
from tests.unit.client.fake_trainer import Trainer


def test_samples_with_everything(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    result = sampling.sample(
        ModelInput.from_ints([5, 6, 7]),
        2,
        SamplingParams(max_tokens=2, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=4, stop=["a", "b"]),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
        topk_logprobs=1,
        affinity_key="k",
    ).result()
    sequence = farstep.SampledSequence([1, 2], [-0.5, -0.5], "length", [0, 0], [[(0, -1.5)], [(0, -1.5)]])
    assert result == farstep.SampleResult(
        sequences=[sequence, sequence],
        prompt_logprobs=[None, -1.0, -2.0],
        topk_prompt_logprobs=[None, [(0, -1.5), (1, -1.5)], [(0, -1.5), (1, -1.5)]],
        policy_version=0,
        prompt_cache_hit_tokens=1,
    )
    sent = sampler.requests[0][0]
    assert (sent.num_samples, sent.affinity_key) == (2, "k")
    params = sent.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (2, 0.5, 0.9, 3, 0.1)
    assert (params.seed, list(params.stop_strings), list(params.stop_tokens)) == (4, ["a", "b"], [])


@pytest.mark.parametrize(
    ("stop", "strings", "tokens"), [("x", ["x"], []), (7, [], [7]), ([7, 8], [], [7, 8]), (None, [], [])]
)
def test_stops(
    sampling: farstep.SamplingClient, sampler: Sampler, stop: object, strings: list[str], tokens: list[int]
) -> None:
    result = sampling.sample([1], sampling_params=SamplingParams(stop=stop)).result()  # type: ignore[arg-type]
    assert result.prompt_logprobs is None
    assert result.topk_prompt_logprobs is None
    assert result.sequences[0].topk_logprobs is None
    sent = sampler.requests[0][0].params
    assert (list(sent.stop_strings), list(sent.stop_tokens)) == (strings, tokens)
    assert not sent.HasField("max_tokens")
    assert not sent.HasField("seed")


def test_logprobs_of_a_prompt(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    assert sampling.compute_logprobs(np.array([1, 2, 3])).result() == [None, -1.0, -2.0]  # type: ignore[arg-type]
    assert sampler.requests[0][0].params.max_tokens == 0


def test_logprobs_of_many_prompts(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    futures = sampling.compute_logprobs_batch([[1] * (1 + index % 7) for index in range(100)])
    assert [len(future.result()) for future in futures] == [1 + index % 7 for index in range(100)]
    assert {request.params.max_tokens for request, _ in sampler.requests} == {0}
    with pytest.raises(ValueError, match=r"prompts\[1\]: no tokens"):
        sampling.compute_logprobs_batch([[1], [], [2]])
    assert len(sampler.requests) == 100
    assert sampling.compute_logprobs_batch([]) == []


def test_what_changes_the_logits_is_sent(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    controls = SamplingParams(
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        repetition_penalty=1.25,
        logit_bias={3: -100, 4: 2.5},
        min_tokens=2,
        json_schema={"type": "object"},
    )
    sampling.sample([1], sampling_params=controls).result()
    sampling.sample([1], sampling_params=SamplingParams(choice=("a", "b"))).result()
    sampling.sample([1]).result()
    first, second, plain = (request.params for request, _ in sampler.requests)
    assert (first.presence_penalty, first.frequency_penalty, first.repetition_penalty) == (-0.5, 1.5, 1.25)
    assert dict(first.logit_bias) == {3: -100.0, 4: 2.5}
    assert (first.min_tokens, first.json_schema) == (2, '{"type": "object"}')
    assert list(second.choice) == ["a", "b"]
    assert not any(plain.HasField(name) for name in ("json_schema", "regex", "grammar"))
    assert not plain.logit_bias
    assert not plain.choice


async def test_awaited(sampling: farstep.SamplingClient) -> None:
    assert (await (await sampling.sample_async([1, 2]))).sequences[0].tokens == [1, 2, 3]
    assert await (await sampling.compute_logprobs_async([1, 2])) == [None, -1.0]
    (future,) = await sampling.compute_logprobs_batch_async([[1, 2]])
    assert await future == [None, -1.0]
    assert await sampling.get_base_model_async() == BASE_MODEL


@pytest.mark.parametrize(
    ("prompt", "arguments", "named"),
    [
        ([], {}, "prompt: no tokens"),
        ([VOCAB_SIZE], {}, "prompt: token 100"),
        ([-1], {}, "prompt: token -1"),
        ([1] * (MAX_SEQ_LEN + 1), {}, "prompt: 65 tokens"),
        ([2**40], {}, "tokens"),
        ("text", {}, "prompt: .* tokenizer"),
        ([1.5], {}, "whole numbers"),
        ([1], {"num_samples": 0}, "num_samples"),
        ([1], {"topk_logprobs": -1}, "topk_logprobs"),
        ([1], {"topk_prompt_logprobs": 1.5}, "topk_prompt_logprobs"),
        ([1], {"sampling_params": {"max_tokens": 1}}, "sampling_params"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    sampling: farstep.SamplingClient, sampler: Sampler, prompt: object, arguments: dict[str, object], named: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        sampling.sample(prompt, **arguments)  # type: ignore[arg-type]
    assert sampler.requests == []


def test_an_image_is_refused_by_a_model_of_text(sampling: farstep.SamplingClient) -> None:
    prompt = ModelInput.from_ints([1]).append(farstep.ImageChunk(b"x", "png"))
    with pytest.raises(farstep.InvalidInputError, match=r"prompt.chunks\[1\].*text chunks only"):
        sampling.sample(prompt)


def test_the_gate(client: farstep.TrainingClient, sampler: Sampler) -> None:
    with client.save_weights_and_get_sampling_client() as pinned:
        sampler.policies[client.run_id] = 0  # the replica that had it is gone
        with pytest.raises(farstep.PolicyNotReadyError) as caught:
            pinned.sample([1]).result()
        error = caught.value
        assert (error.wanted_version, error.newest_version, error.retry_after_s) == (1, 0, 1.5)
        assert isinstance(error, farstep.RemoteOpError)
        with pytest.raises(farstep.PublishTimeoutError):
            pinned.ensure_ready(timeout=0.2)


def test_pickled_with_a_key_from_the_environment(
    trainer: Trainer, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    with (
        farstep.ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url) as service,
        service.create_lora_training_client(BASE_MODEL) as client,
        client.save_weights_and_get_sampling_client() as pinned,
    ):
        pickled = pickle.dumps(pinned)
        run_id = client.run_id
    assert KEY.encode() not in pickled
    with pickle.loads(pickled) as copy:
        assert copy.sample([1]).result().policy_version == copy.policy_version == 1
        assert copy.get_base_model() == BASE_MODEL
        assert run_id in repr(copy)
    assert sampler.requests[-1][1]["x-min-policy-version"] == "1"


def test_pickled_with_a_key_by_argument(sampling: farstep.SamplingClient) -> None:
    with pickle.loads(pickle.dumps(sampling)) as copy:
        assert copy.sample([1]).result().sequences[0].tokens == [1, 2, 3]
    assert KEY not in repr(sampling)


def test_closed(sampling: farstep.SamplingClient) -> None:
    sampling.ensure_ready()
    sampling.close()
    with pytest.raises(farstep.ClientClosedError):
        sampling.sample([1])
