"""Waiting: timeouts, Ctrl-C, cancelled tasks, several waiters; and what none of them touches, the operation."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time

import pytest

import farstep
from farstep import Future
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_training import datum


def test_a_timeout_ends_the_wait_only(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = client.forward([datum()])
    began_at = time.monotonic()
    with pytest.raises(TimeoutError, match="goes on") as caught:
        future.result(timeout=0.1)
    assert 0.05 < time.monotonic() - began_at < 2
    assert isinstance(caught.value, farstep.ResultTimeout)
    with pytest.raises(farstep.ResultTimeout):
        future.exception(timeout=0)
    assert not future.done()
    trainer.release()
    assert future.result(timeout=5).loss == 2.5
    assert future.done()
    assert future.result() is future.result()
    assert future.exception() is None


def test_ctrl_c_ends_the_wait_only(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = client.forward([datum()])
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        future.result(timeout=10)
    trainer.release()
    assert future.result(timeout=5).loss == 2.5


async def test_a_cancelled_task_ends_the_wait_only(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = await client.forward_async([datum()])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future, 0.05)
    waiters = [asyncio.ensure_future(_await(future)) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiters[0].cancel()
    trainer.release()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1] is results[2] is await future


async def _await(future: Future[farstep.ForwardBackwardOutput]) -> farstep.ForwardBackwardOutput:
    return await future


def test_one_future_on_several_event_loops(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = client.forward([datum()])
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(_await(future)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    trainer.release()
    for thread in threads:
        thread.join()
    assert results == [future.result()] * 3


def test_a_loop_that_closed_while_it_waited_disturbs_nobody(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = client.forward([datum()])
    loop = asyncio.new_event_loop()
    task = loop.create_task(_await(future))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    trainer.release()
    assert future.result(timeout=5).loss == 2.5
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()


def test_cancelling_drops_what_has_not_started(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = client.forward_backward([datum()])
    assert future.cancel() is True
    error = future.exception(timeout=5)
    assert isinstance(error, farstep.RemoteOpError)
    assert error.error_class == "CancelledError"
    assert future.cancel() is False
    assert trainer.executed == []


async def test_cancelling_what_has_run_says_no(client: farstep.TrainingClient) -> None:
    future = await client.forward_async([datum()])
    await future
    assert await future.cancel_async() is False
    assert (await future).loss == 2.5


def test_callbacks(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = client.forward([datum()])
    called: list[object] = []
    arrived = threading.Event()
    future.add_done_callback(lambda done: 1 / 0)
    future.add_done_callback(lambda done: called.append(done.result().loss))
    future.add_done_callback(lambda done: called.append(_refusal(client)))
    future.add_done_callback(lambda done: arrived.set())
    trainer.release()
    assert arrived.wait(5)
    assert called[0] == 2.5
    assert "inside a callback" in str(called[1])
    future.add_done_callback(called.append)
    assert called[-1] is future
    assert client.forward([datum()]).result().loss == 2.5  # the refused call left no gap


def _refusal(client: farstep.TrainingClient) -> Exception | None:
    try:
        client.forward([datum()])
    except RuntimeError as error:
        return error
    return None


def test_the_event_loop_is_not_blocked(client: farstep.TrainingClient, trainer: Trainer) -> None:
    """A server that takes its time to accept holds up the call, not the loop it was made on."""

    async def main() -> int:
        trainer.hold()
        num_ticks = 0
        future = await client.forward_async([datum()])
        waiting = asyncio.ensure_future(_await(future))
        for _ in range(20):
            await asyncio.sleep(0.005)
            num_ticks += 1
        assert not waiting.done()
        trainer.release()
        await waiting
        return num_ticks

    assert asyncio.run(main()) == 20


def test_two_hundred_operations_in_flight(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    num_threads = threading.active_count()
    futures = [client.forward([datum()]) for _ in range(200)]
    assert threading.active_count() == num_threads
    num_polls = trainer.count(":poll")
    trainer.release()
    assert sum(future.result(timeout=10).loss for future in futures) == 500
    assert trainer.count(":poll") - num_polls < 20


async def test_a_thousand_samples_in_flight(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.is_held = True
    num_threads = threading.active_count()
    futures = await asyncio.gather(*(sampling.sample_async([1, 2]) for _ in range(1000)))
    assert threading.active_count() == num_threads
    sampler.release_backwards()
    results = await asyncio.gather(*futures)
    assert len(results) == 1000
    assert all(result.sequences[0].tokens == [1, 2, 3] for result in results)


def test_results_that_come_out_of_order(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.is_held = True
    futures = [
        sampling.sample([1], sampling_params=farstep.SamplingParams(max_tokens=length)) for length in range(1, 8)
    ]
    order: list[int] = []
    for length, future in enumerate(futures, start=1):
        future.add_done_callback(lambda _, length=length: order.append(length))
    sampler.release_backwards()
    assert [len(future.result(timeout=5).sequences[0].tokens) for future in futures] == list(range(1, 8))
    assert order == list(range(7, 0, -1))


def test_repr_says_how_it_stands(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    future = client.optim_step()
    assert repr(future) == f"<Future optim_step {client.run_id}:1 pending>"
    trainer.release()
    future.exception()
    assert repr(future).endswith("failed: RemoteOpError>")


def test_closing_ends_the_waits(local: farstep.ServiceClient, trainer: Trainer) -> None:
    client = local.create_lora_training_client("farstep/tiny")
    trainer.hold()
    future = client.forward([datum()])
    client.close()
    local.close()
    with pytest.raises(farstep.ClientClosedError):
        future.result(timeout=5)


def test_errors_can_be_pickled(client: farstep.TrainingClient) -> None:
    error = client.optim_step().exception()
    assert isinstance(error, farstep.RemoteOpError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.error_class, copy.operation_id) == (
        type(error),
        str(error),
        error.error_class,
        error.operation_id,
    )


def _in_the_child(client: farstep.SamplingClient, old: Future[farstep.SampleResult], answers: object) -> None:
    answers.put(client.sample([1]).result(timeout=5).sequences[0].tokens)  # type: ignore[attr-defined]
    answers.put(type(old.exception(timeout=5)).__name__)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_connects_anew(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.is_held = True
    old = sampling.sample([1, 2])
    sampler.is_held = False
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_in_the_child, args=(sampling, old, answers))
    child.start()
    child.join(15)
    assert child.exitcode == 0
    assert answers.get() == [1, 2, 3]
    assert answers.get() == "UnknownRequestError"
    sampler.release_backwards()
    assert old.result(timeout=5).sequences[0].tokens == [1, 2, 3]
