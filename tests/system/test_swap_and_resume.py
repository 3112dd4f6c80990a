"""Real processes: policies are swapped under load without a failed request; a run goes on in a new process."""

import subprocess
import sys
import threading
import time

import pytest

import farstep
from farstep import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient
from tests.support.processes import KEY, running, trainer_and_sampler

pytestmark = pytest.mark.system


def step(trainer, index):
    answer = [60 + index % 7, 61 + index % 5, 2]
    trainer.forward_backward([Datum.from_prompt_completion([1, 40, 41], answer)])
    return trainer.optim_step(AdamParams(learning_rate=5e-3))


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)


def test_swap_under_load(service):
    """Samplers keep asking while ten policies are published; none fails, none is older than it asked for."""
    trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=3)
    newest = trainer.save_weights_and_get_sampling_client()
    stop = threading.Event()
    failures, served = [], []

    def load():
        while not stop.is_set():
            client = newest
            try:
                result = client.sample(ModelInput.from_ints([1, 40, 41]), 2, SamplingParams(max_tokens=24)).result()
            except farstep.FarstepError as error:
                failures.append(error)
                return
            served.append(result.policy_version)
            if result.policy_version < client.policy_version:
                failures.append(AssertionError(f"{result.policy_version} < {client.policy_version}"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for index in range(10):
        step(trainer, index)
        newest = trainer.save_weights_and_get_sampling_client()
        while newest.policy_version not in served and not failures:
            time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(served) == set(range(1, 12))


RESUME = """
import sys
from farstep import ServiceClient
from tests.system.test_swap_and_resume import step
url, path = sys.argv[1:]
service = ServiceClient.local(trainer_url=url, sampler_url=url)
trainer = service.create_training_client_from_state_with_optimizer(path)
for index in range(5, 10):
    last = step(trainer, index)
assert last.result().metrics["step"] == 10
print(trainer.save_state("end").result().path)
"""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resume_in_new_processes_is_bit_exact(tmp_path, dropout):
    """Ten steps straight are five steps, a save, a new dp_worker and a new client, and five more: to the bit."""
    store = tmp_path / "store"
    with running("farstep_worker", "--model", "farstep/tiny", "--store", store) as first:
        service = ServiceClient.local(trainer_url=first.url, sampler_url=first.url)
        trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=11, dropout=dropout)
        for index in range(5):
            step(trainer, index)
        half = trainer.save_state("half").result().path
        for index in range(5, 10):
            step(trainer, index)
        straight = trainer.save_state("end").result().path
        service.close()
    with running("farstep_worker", "--model", "farstep/tiny", "--store", store) as second:
        script = subprocess.run(
            [sys.executable, "-c", RESUME, second.url, half], capture_output=True, text=True, check=False
        )
        assert script.returncode == 0, script.stderr
    assert weights(store, straight) == weights(store, script.stdout.split()[-1])


def weights(store, path):
    run_id, kind, name = path.removeprefix("bt://loops:").split("/")
    folder = store / run_id / kind / name
    files = sorted(file for file in folder.iterdir() if file.suffix == ".safetensors")
    assert len(files) >= 2  # adapter and optimizer
    return {file.name: file.read_bytes() for file in files}


def test_a_sampler_that_was_away_catches_up(tmp_path):
    with trainer_and_sampler(tmp_path) as (trainer_process, sampler_process):
        service = ServiceClient.local(trainer_url=trainer_process.url, sampler_url=sampler_process.url)
        trainer = service.create_lora_training_client("farstep/tiny", rank=4)
        for index in range(3):
            step(trainer, index)
            trainer.save_weights_and_get_sampling_client()
        sampler_process.kill()
        step(trainer, 3)
        trainer.save_weights_for_sampler("four").result()
        port = sampler_process.url.rsplit(":", 1)[1]
        feed = trainer_process.facts["feed"]
        options = ("--model", "farstep/tiny", "--store", tmp_path, "--feed", feed, "--port", port)
        with running("farstep_sampler", *options):
            client = trainer.save_weights_and_get_sampling_client()
            result = client.sample(ModelInput.from_ints([1, 40]), 1, SamplingParams(max_tokens=1)).result()
            assert result.policy_version == 5
        service.close()
