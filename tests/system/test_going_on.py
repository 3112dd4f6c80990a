"""Real servers behind a faulty network, and a client that is stopped or killed: every operation once, the same bits.

`make test-faults` runs it with longer loops and more seeds.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import farstep
from farstep import AdamParams, SamplingParams, ServiceClient
from tests.support import training_loop
from tests.support.faulty_proxy import faulty_proxy
from tests.support.network_faults import FaultPlan
from tests.support.processes import KEY, trainer_and_sampler

pytestmark = pytest.mark.system

IS_LONG = bool(os.environ.get("FARSTEP_TEST_FAULTS"))
STEPS = 300 if IS_LONG else 30
SAMPLES = 3000 if IS_LONG else 150
SEEDS = range(10 if IS_LONG else 1)
QUICK = {"delay_s": 0.05, "hole_s": 0.1}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    store = tmp_path_factory.mktemp("going-on") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FARSTEP_API_KEY", KEY)
        with trainer_and_sampler(store) as (trainer, sampler):
            yield trainer, sampler, store


@pytest.fixture(scope="module")
def undisturbed(pair):
    """The adapter's bytes after the loop, and what it takes to compare another's."""
    trainer, sampler, store = pair
    with (
        ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url) as service,
        service.create_lora_training_client("farstep/tiny", rank=4, seed=training_loop.SEED) as client,
    ):
        return files(store, training_loop.train(client, STEPS))


def files(store, path):
    run_id, kind, name = path.removeprefix("bt://loops:").split("/")
    return {file.name: file.read_bytes() for file in (store / run_id / kind / name).glob("*.safetensors")}


def ran(trainer, run_id, sampler):
    """The seqs of the operations that ran, as the trainer tells, which counts what it computes."""
    with (
        ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url) as service,
        service.resume_run(run_id) as client,
    ):
        return [int(each.operation_id.rpartition(":")[2]) for each in client.trace(1000)]


async def train_many_at_a_time(client):
    """The same calls, with eight of them on their way at once."""
    futures = []
    for first in range(0, STEPS, 4):
        submitted = []
        for step in range(first, min(first + 4, STEPS)):
            submitted.append(client.forward_backward_async(training_loop.batch(step)))
            submitted.append(client.optim_step_async(AdamParams(learning_rate=5e-3)))
        futures += await asyncio.gather(*submitted)
    for future in futures:
        await future
    return (await (await client.save_state_async("end"))).path


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_network_that_loses_doubles_and_cuts_changes_no_bit(pair, undisturbed, seed):
    trainer, sampler, store = pair
    with (
        faulty_proxy(trainer.url, FaultPlan.everything(0.3, seed=seed), **QUICK) as proxy,
        ServiceClient.local(trainer_url=proxy.url, sampler_url=sampler.url) as service,
        service.create_lora_training_client("farstep/tiny", rank=4, seed=training_loop.SEED) as client,
    ):
        path = await train_many_at_a_time(client)
        assert proxy.plan.num_faults > STEPS / 2
    assert files(store, path) == undisturbed
    assert ran(trainer, client.run_id, sampler) == list(range(1, 2 * STEPS + 2))


async def test_samples_through_such_a_network(pair):
    trainer, sampler, _ = pair

    async def sample_all(url):
        with (
            ServiceClient.local(trainer_url=trainer.url, sampler_url=url) as service,
            service.create_sampling_client("farstep/tiny") as client,
        ):
            submitted = (
                client.sample_async([1, 40 + index % 9], 1, SamplingParams(max_tokens=4, seed=index))
                for index in range(SAMPLES)
            )
            return [(await future).sequences[0].tokens for future in await asyncio.gather(*submitted)]

    with faulty_proxy(sampler.url, FaultPlan.everything(0.2, seed=7), **QUICK) as proxy:
        assert await sample_all(proxy.url) == await sample_all(sampler.url)
        assert proxy.plan.num_faults > SAMPLES / 10


@contextlib.contextmanager
def loop_process(trainer_url, sampler_url, run_file, *more):
    command = [sys.executable, "-m", "tests.support.training_loop", trainer_url, sampler_url, run_file, STEPS, *more]
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until_call(process, seq):
    for line in process.stdout:
        if line.startswith(f"call {seq} "):
            return
    raise AssertionError(f"no call {seq}")


def test_a_client_that_is_killed_goes_on_in_a_new_process(pair, undisturbed, tmp_path):
    trainer, sampler, store = pair
    run_file = tmp_path / "run_id"
    found = []
    with faulty_proxy(trainer.url, **QUICK) as proxy:
        for seq in (7, 32):
            with loop_process(proxy.url, sampler.url, run_file) as process:
                until_call(process, seq)
                process.kill()
                process.wait()
        with loop_process(proxy.url, sampler.url, run_file) as process:
            *lines, end = process.stdout.read().splitlines()
            found = [line for line in lines if line.startswith("found")]
    assert files(store, end.split()[1]) == undisturbed
    assert found  # the results that the one before had not fetched
    assert ran(trainer, run_file.read_text(), sampler) == list(range(1, 2 * STEPS + 2))


def test_a_client_that_sleeps_goes_on(pair, undisturbed, tmp_path):
    """It is stopped for longer than all of its budgets, and wakes without a network."""
    trainer, sampler, store = pair
    run_file = tmp_path / "run_id"
    with faulty_proxy(trainer.url, **QUICK) as proxy, loop_process(proxy.url, sampler.url, run_file, 2.5) as process:
        until_call(process, 12)
        process.send_signal(signal.SIGSTOP)
        proxy.refuse()
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.7)
        proxy.accept()
        end = process.stdout.read().splitlines()[-1]
    assert files(store, end.split()[1]) == undisturbed
    assert ran(trainer, run_file.read_text(), sampler) == list(range(1, 2 * STEPS + 2))


def test_two_clients_of_one_run(pair):
    trainer, sampler, _ = pair
    with ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url) as service:
        first = service.create_lora_training_client("farstep/tiny", rank=4, seed=1)
        second = service.resume_run(first.run_id)
        first.forward_backward(training_loop.batch(0)).result()
        with pytest.raises(farstep.ConflictError, match="resume_run"):
            second.forward_backward(training_loop.batch(1))
        with service.resume_run(first.run_id) as third:
            assert third.optim_step().result().metrics["step"] == 1
        for client in (first, second):
            client.close()
