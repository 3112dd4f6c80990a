"""A trainer and a sampler that computes with vLLM, as processes, through the SDK: publish, gates, swaps, deaths."""

import threading
import time

import httpx
import psutil
import pytest

from farstep import AdamParams, SamplingParams, ServiceClient
from farstep.types import Datum, ModelInput
from farstep_proto import paths
from tests.support.processes import KEY, running, trainer_and_sampler
from tests.support.vllm_starting import OPTIONS

pytestmark = pytest.mark.timeout(600)
SAMPLER = ("--engine", "vllm", "--max-lora-rank", "8", "--resident-versions", "4", "--vllm-options", OPTIONS)
PROMPT = ModelInput.from_ints([5, 6, 7, 8, 9])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with trainer_and_sampler(tmp_path_factory.mktemp("pair") / "store", sampler_options=SAMPLER) as servers:
        yield servers


@pytest.fixture
def service(pair, monkeypatch):
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    with ServiceClient.local(trainer_url=pair[0].url, sampler_url=pair[1].url) as client:
        yield client


def step(tc):
    tokens = [5, 6, 7, 8, 9, 10, 11, 12]
    datum = Datum(
        model_input=ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * 7},
    )
    tc.forward_backward([datum], "cross_entropy").result()
    tc.optim_step(AdamParams(learning_rate=1e-2)).result()


def trainer_logprobs(tc, sequence):
    """What the trainer's own forward pass says of a sample."""
    whole = [*PROMPT.to_ints(), *sequence.tokens]
    datum = Datum(model_input=ModelInput.from_ints(whole[:-1]), loss_fn_inputs={"target_tokens": whole[1:]})
    output = tc.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
    return output.tolist()[len(PROMPT.to_ints()) - 1 :]


def test_five_versions_sampled_are_the_versions_trained(service):
    tc = service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
    assert service.get_server_capabilities() is not None
    for version in range(1, 6):
        step(tc)
        sampler = tc.save_weights_and_get_sampling_client()
        result = sampler.sample(PROMPT, 2, SamplingParams(max_tokens=20, seed=version)).result()
        assert result.policy_version == version
        for sequence in result.sequences:
            expected = trainer_logprobs(tc, sequence)
            assert max(abs(a - b) for a, b in zip(sequence.logprobs, expected, strict=True)) < 5e-5


def test_an_exact_pin_goes_on_while_newer_versions_come(service):
    tc = service.create_lora_training_client("farstep/tiny", rank=4, seed=2)
    step(tc)
    pinned = tc.save_weights_and_get_sampling_client(pin="exact")
    params = SamplingParams(max_tokens=20, seed=7)
    before = pinned.sample(PROMPT, 1, params).result()
    step(tc)
    newest = tc.save_weights_and_get_sampling_client()
    after = pinned.sample(PROMPT, 1, params).result()
    assert (before.policy_version, after.policy_version) == (1, 1)
    assert after.sequences[0].tokens == before.sequences[0].tokens
    assert newest.sample(PROMPT, 1, params).result().policy_version == 2


def test_swaps_under_load_fail_nothing(service):
    tc = service.create_lora_training_client("farstep/tiny", rank=4, seed=3)
    step(tc)
    sampler = tc.save_weights_and_get_sampling_client()
    results, is_over = [], threading.Event()

    def load():
        while not is_over.is_set():
            params = SamplingParams(max_tokens=16)
            futures = [sampler.sample(PROMPT, 2, params) for _ in range(8)]
            results.extend(future.result() for future in futures)

    loader = threading.Thread(target=load)
    loader.start()
    try:
        for _ in range(8):
            step(tc)
            tc.save_weights_and_get_sampling_client()
            time.sleep(0.2)
    finally:
        is_over.set()
        loader.join()
    versions = [result.policy_version for result in results]
    assert len(set(versions)) >= 3
    last = results[-1]
    assert last.policy_version >= 8
    if last.policy_version == 9:
        for sequence in last.sequences:
            expected = trainer_logprobs(tc, sequence)
            assert max(abs(a - b) for a, b in zip(sequence.logprobs, expected, strict=True)) < 5e-5


def test_prompts_are_scored_as_the_trainer_scores_them(service):
    tc = service.create_lora_training_client("farstep/tiny", rank=4, seed=4)
    step(tc)
    sampler = tc.save_weights_and_get_sampling_client()
    tokens = [5, 6, 7, 8, 9, 10, 11]
    found = sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()
    datum = Datum(model_input=ModelInput.from_ints(tokens[:-1]), loss_fn_inputs={"target_tokens": tokens[1:]})
    expected = tc.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
    assert found[0] is None
    assert max(abs(a - b) for a, b in zip(found[1:], expected, strict=True)) < 5e-5


def test_a_kept_checkpoint_is_sampled_by_its_path(service):
    tc = service.create_lora_training_client("farstep/tiny", rank=4, seed=5)
    step(tc)
    path = tc.save_weights_for_sampler("kept").result().path
    sampler = tc.create_sampling_client(path)
    (sequence,) = sampler.sample(PROMPT, 1, SamplingParams(max_tokens=10)).result().sequences
    expected = trainer_logprobs(tc, sequence)
    assert max(abs(a - b) for a, b in zip(sequence.logprobs, expected, strict=True)) < 5e-5


@pytest.mark.parametrize("how", ["killed", "told to stop"])
def test_no_process_of_vllm_outlives_the_sampler(tmp_path, how):
    with running("farstep_sampler", "--store", tmp_path, *SAMPLER) as server:
        below = psutil.Process(server.process.pid).children(recursive=True)
        assert {process.name() for process in below} >= {"VLLM::EngineCore", "VLLM::Worker"}
        if how == "killed":
            server.kill()
        else:
            server.stop()
        _, left = psutil.wait_procs(below, timeout=15)
        assert not [process for process in left if process.name().startswith("VLLM")]
        assert not left


def test_what_a_dead_vllm_had_in_flight_is_sampled_elsewhere(tmp_path):
    """And the replica says that it is unhealthy, and takes nothing new."""
    with (
        running("farstep_sampler", "--store", tmp_path, *SAMPLER) as dying,
        running("farstep_sampler", "--store", tmp_path, "--device", "cpu") as other,
        running("farstep_sampler.router", "--replica", dying.url, "--replica", other.url) as router,
        httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as http,
    ):
        until(lambda: http.get(router.url + paths.HEALTH).status_code == 200)
        answers = []

        def ask():
            answers.append(http.post(router.url + paths.SAMPLE, json=BODY))

        askers = [threading.Thread(target=ask) for _ in range(8)]
        for asker in askers:
            asker.start()
        time.sleep(0.5)
        engine = next(p for p in psutil.Process(dying.process.pid).children() if p.name().startswith("VLLM::E"))
        engine.kill()
        for asker in askers:
            asker.join()
        assert [answer.status_code for answer in answers] == [200] * 8
        until(lambda: http.get(dying.url + paths.HEALTH).status_code == 500)
        answer = http.post(dying.url + paths.SAMPLE, json=BODY)
        assert (answer.status_code, answer.json()["message"]) == (503, "the engine has stopped")


BODY = {
    "prompt": {"chunks": [{"encoded_text": {"ids": [5, 6]}}]},
    "num_samples": 2,
    "params": {"max_tokens": 400, "ignore_eos": True},
}


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
