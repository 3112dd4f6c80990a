"""A trainer is killed in the middle of a training loop and started again: the loop notices nothing but a pause."""

import random
import threading
import time

import pytest

from farstep import AdamParams, Datum, ServiceClient
from tests.support.processes import KEY, running

pytestmark = pytest.mark.system

STEPS = 12


@pytest.fixture(autouse=True, scope="module")
def key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FARSTEP_API_KEY", KEY)
        yield


def datum(index, *, length=24):
    rng = random.Random(index)
    return Datum.from_prompt_completion([1, 40, 41], [rng.randrange(3, 90) for _ in range(length)])


def train(url, *, seed=5, dropout=0.1, steps=STEPS, before=lambda index: None):
    """A loop that keeps two steps under way, publishes and saves; what every call said."""
    said = []
    with ServiceClient.local(trainer_url=url, sampler_url=url) as service:
        trainer = service.create_lora_training_client("farstep/tiny", rank=4, seed=seed, dropout=dropout)
        for index in range(steps):
            before(index)
            said.append(trainer.forward_backward([datum(index), datum(index + 1)]))
            said.append(trainer.optim_step(AdamParams(learning_rate=5e-3)))
            if index % 3 == 2:
                said.append(trainer.save_weights_for_sampler(f"policy-{index}"))
            if index == 6:
                said.append(trainer.save_state("middle", overwrite=True))
            if len(said) > 5:
                said[-5].result()
        path = trainer.save_state("end").result().path
        results = [future.result() for future in said]
        return trainer.run_id, path, results


def told(results):
    """What does not name the run."""
    return [(getattr(result, "metrics", None), getattr(result, "policy_version", None)) for result in results]


def files(store, path):
    run_id, kind, name = path.removeprefix("bt://loops:").split("/")
    return {file.name: file.read_bytes() for file in (store / run_id / kind / name).glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    with running("farstep_worker", "--model", "farstep/tiny", "--store", store) as server:
        _, path, results = train(server.url)
    return files(store, path), told(results)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_and_restart_in_the_middle_of_a_loop(tmp_path, undisturbed, seed):
    rng = random.Random(seed)
    kills = sorted(rng.sample(range(1, STEPS), 2))
    delays = {index: rng.uniform(0, 0.15) for index in kills}
    store = tmp_path / "store"
    killing = []
    with running("farstep_worker", "--model", "farstep/tiny", "--store", store) as server:

        def kill_soon(index):
            if index not in delays:
                return

            def kill():
                time.sleep(delays[index])
                server.kill()
                server.restart()

            for thread in killing:
                thread.join()
            killing.append(threading.Thread(target=kill))
            killing[-1].start()

        _, path, results = train(server.url, before=kill_soon)
        for thread in killing:
            thread.join()
        assert told(results) == undisturbed[1]
        assert files(store, path) == undisturbed[0]
        versions = [result.policy_version for result in results if getattr(result, "policy_version", None)]
        assert versions == list(range(1, len(versions) + 1))
