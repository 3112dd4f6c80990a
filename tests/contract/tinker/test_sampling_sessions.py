"""What a sampling client samples from: base models, checkpoints of any session, and policies as they are trained."""

import os
import pickle
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
import tinker
from tinker import types

from tests.support.tinker_processes import ENDS

pytestmark = pytest.mark.timeout(240)

TEXT = [5, 6, 7, 8, 9, 40, 41, 42, 43, 44]
TOLERANCE = 1e-5  # trainer and sampler compute in fp32, in another order
WAIT_S = 60


def trained(service, *, steps=1, rank=4):
    """A training client after so many large steps."""
    client = service.create_lora_training_client("farstep/tiny", rank=rank, seed=1).result(WAIT_S)
    for _ in range(steps):
        step(client)
    return client


def datum():
    inputs = {"target_tokens": np.array(TEXT[1:]), "weights": np.ones(len(TEXT) - 1, dtype=np.float32)}
    tensors = {name: types.TensorData.from_numpy(array) for name, array in inputs.items()}
    return types.Datum(model_input=types.ModelInput.from_ints(TEXT[:-1]), loss_fn_inputs=tensors)


def step(client):
    client.forward_backward([datum()], "cross_entropy").result(WAIT_S)
    client.optim_step(types.AdamParams(learning_rate=0.01)).result(WAIT_S)


def forward(client):
    """What the trainer says of the text's tokens after the first."""
    return client.forward([datum()], "cross_entropy").result(WAIT_S).loss_fn_outputs[0]["logprobs"].to_numpy()


def scores(sampler):
    found = sampler.compute_logprobs(types.ModelInput.from_ints(TEXT)).result(WAIT_S)
    return np.array(found[1:])


@pytest.fixture(scope="module")
def service(tinker_url, tinker_key):
    service = tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key)
    yield service
    service.close("success")


@pytest.fixture(scope="module")
def base(service):
    return service.create_sampling_client(base_model="farstep/tiny").result(WAIT_S)


@pytest.fixture
def raw(tinker_url, tinker_key):
    with httpx.Client(base_url=f"{tinker_url}/api/v1", headers={"X-API-Key": tinker_key}, trust_env=False) as client:
        yield client


def test_after_each_step_samples_come_of_the_new_weights_and_old_clients_keep_theirs(service, base):
    client = trained(service, steps=0)
    np.testing.assert_allclose(forward(client), scores(base), atol=TOLERANCE)
    kept = []
    for _ in range(3):
        step(client)
        sampler = client.save_weights_and_get_sampling_client().result(WAIT_S)
        kept.append((sampler, forward(client)))
    for sampler, expected in kept:
        np.testing.assert_allclose(scores(sampler), expected, atol=TOLERANCE)
        found = sampler.sample(types.ModelInput.from_ints(TEXT[:4]), 2, types.SamplingParams(max_tokens=3, seed=1))
        assert len(found.result(WAIT_S).sequences) == 2
    assert np.abs(kept[0][1] - kept[-1][1]).max() > 0.1, "the steps are large"


def test_an_inflight_client_moves_on_with_the_next_save(service):
    client = trained(service)
    moving = client.save_weights_and_get_sampling_client(kind="inflight").result(WAIT_S)
    np.testing.assert_allclose(scores(moving), forward(client), atol=TOLERANCE)
    step(client)
    later = client.save_weights_and_get_sampling_client(kind="inflight").result(WAIT_S)
    expected = forward(client)
    np.testing.assert_allclose(scores(later), expected, atol=TOLERANCE)
    np.testing.assert_allclose(scores(moving), expected, atol=TOLERANCE)


def test_named_weights_are_sampled_by_any_session(service, tinker_url, tinker_key):
    client = trained(service, steps=2)
    path = client.save_weights_for_sampler("shared").result(WAIT_S).path
    expected = forward(client)
    step(client)
    with tinker.ServiceClient(base_url=tinker_url, api_key=tinker_key) as other:
        sampler = other.create_sampling_client(model_path=path).result(WAIT_S)
        assert sampler.get_base_model() == "farstep/tiny", "the name that was asked for"
        np.testing.assert_allclose(scores(sampler), expected, atol=TOLERANCE)
        record = sampler._get_sampler_submit().result(WAIT_S)
        assert (record.model_path, record.sampler_id) == (path, sampler._sampling_session_id)
    again = client.create_sampling_client(path).result(WAIT_S)
    np.testing.assert_allclose(scores(again), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"model_path": "tinker://nobody:train:0/sampler_weights/x"}, tinker.NotFoundError, "nobody:train:0"),
        ({"model_path": "tinker://nobody:train:0/weights/x"}, tinker.BadRequestError, "not for sampling"),
        ({"model_path": "tinker://nonsense"}, tinker.BadRequestError, "model_path"),
        ({"base_model": "nobody/has-this"}, tinker.BadRequestError, "not served here"),
    ],
    ids=str,
)
def test_what_there_is_not_is_said_when_the_client_is_made(service, asked, error, told):
    started = time.monotonic()
    with pytest.raises(error, match=told):
        service.create_sampling_client(**asked).result(WAIT_S)
    assert time.monotonic() - started < 20, "nobody retried"


def test_a_checkpoint_that_was_deleted_meanwhile_is_named(service, raw):
    client = trained(service)
    path = client.save_weights_for_sampler("gone").result(WAIT_S).path
    sampler = service.create_sampling_client(model_path=path).result(WAIT_S)
    run, _, kind_and_name = path.removeprefix("tinker://").partition("/")
    url = f"{str(raw.base_url).split('/api/')[0]}/v1/checkpoints/{run}/{kind_and_name}"
    key = raw.headers["X-API-Key"].removeprefix("tml-")
    httpx.delete(url, headers={"Authorization": f"Bearer {key}"}, trust_env=False).raise_for_status()
    with pytest.raises(tinker.RequestFailedError, match=r"sampler_weights/gone") as caught:
        scores(sampler)
    assert caught.value.category == types.RequestErrorCategory.User
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client(model_path=path).result(WAIT_S)


_OTHER_PROCESS = """
import pickle, sys
from tinker import types
first = pickle.load(sys.stdin.buffer)
for client in first, type(first).from_sampler_handle(sys.argv[1], api_key=sys.argv[2]):
    params = types.SamplingParams(max_tokens=6, seed=5, stop=[])
    found = client.sample(types.ModelInput.from_ints([5, 6, 7]), 1, params).result(60).sequences[0]
    print(found.sequence_id, found.tokens, flush=True)
"""


def test_a_client_goes_to_other_processes(service, base, tinker_key):
    sampler = trained(service).save_weights_and_get_sampling_client().result(WAIT_S)
    params = types.SamplingParams(max_tokens=6, seed=5, stop=[])
    here = sampler.sample(types.ModelInput.from_ints([5, 6, 7]), 1, params).result(WAIT_S).sequences[0]
    there = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, sampler.get_sampler_handle(), tinker_key],
        input=pickle.dumps(sampler),
        capture_output=True,
        check=False,
        timeout=WAIT_S,
        env={**os.environ, "TINKER_TELEMETRY": "0"},
    )
    assert there.returncode in ENDS, there.stderr.decode()
    told = [line.split(" ", 1) for line in there.stdout.decode().splitlines()]
    assert [tokens for _, tokens in told] == [str(here.tokens)] * 2
    assert len({here.sequence_id, *(sequence_id for sequence_id, _ in told)}) == 3


def test_repetitions_are_the_same_request(raw, base):
    """Of sessions and samples; a second sample under a number is refused, and the first is left alone."""
    session_id = raw.post("create_session", json={"sdk_version": "0.38.0"}).json()["session_id"]
    body = {"session_id": session_id, "sampling_session_seq_id": 7, "base_model": "farstep/tiny"}
    first, second = [raw.post("create_sampling_session", json=body).json() for _ in range(2)]
    assert first == second == {"type": "create_sampling_session", "sampling_session_id": f"{session_id}:sample:7"}
    joined = [raw.post("join_sampling_session", json=first).json()["client_counter"] for _ in range(3)]
    assert joined == [1, 2, 3]
    sample = {
        "sampling_session_id": first["sampling_session_id"],
        "seq_id": 2**40,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
        "sampling_params": {"max_tokens": 9},
        "num_samples": 2,
    }
    promises = [raw.post("asample", json=sample).json() for _ in range(2)]
    wanted = f"{session_id}:sample:7:{2**40}"
    assert promises == [{"request_id": wanted, "sample_sequence_ids": [f"{wanted}:0", f"{wanted}:1"]}] * 2
    other = raw.post("asample", json={**sample, "num_samples": 3})
    assert other.status_code == 400
    assert other.json()["field"] == "seq_id"
    ask = {"json": {"request_id": wanted}, "timeout": 60, "headers": {"Accept": "application/x-protobuf"}}
    results = [raw.post("retrieve_future", **ask) for _ in range(2)]  # unseeded: it was sampled once
    assert results[0].headers["content-type"] == "application/x-protobuf"
    assert results[0].content == results[1].content
    never = raw.post("retrieve_future", json={"request_id": f"{session_id}:sample:7:5"}, timeout=60)
    assert never.status_code == 410, "the SDK submits it again"


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "sampling_session_id"), ({"sampling_session_id": "x", "seq_id": -1}, "seq_id"), ([1], "body")],
    ids=str,
)
def test_a_sample_of_which_nobody_can_say_whose_it_is_is_refused(raw, body, field):
    refused = raw.post("asample", json=body)
    assert refused.status_code == 400
    assert refused.json()["field"] == field


def test_a_sample_that_is_given_up_ends(raw):
    session_id = raw.post("create_session", json={}).json()["session_id"]
    body = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": "farstep/tiny"}
    sample = {
        **raw.post("create_sampling_session", json=body).json(),
        "seq_id": 0,
        "prompt": {"chunks": [{"tokens": [5]}]},
        "sampling_params": {"max_tokens": 2000, "stop": []},
        "num_samples": 64,
    }
    promise = raw.post("asample", json=sample).json()
    cancelled = raw.post("cancel_future", json={"request_id": promise["request_id"]}, timeout=60).json()
    assert cancelled["cancelled"]
    told = raw.post("retrieve_future", json={"request_id": promise["request_id"]}, timeout=60).json()
    assert "cancelled" in told["error"]
