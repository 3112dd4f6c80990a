"""Operations run one after the other without the event loop; what is before and after them runs elsewhere."""

import asyncio
import dataclasses
import signal
import threading
import time

from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.dispatch import INLINE_BYTES
from tests.unit.worker.wire import GatedExecutor, serving, until

SUCCEEDED = operations_pb2.OPERATION_STATE_SUCCEEDED


def block_loop_until(condition):
    """On the event loop: nothing on it goes on meanwhile."""
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it never came true")


def torch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "torch"]


async def test_what_is_queued_runs_while_the_loop_does_other_things(trainer, gated, request_of):
    gated.gate.clear()
    await trainer.create("other")
    for seq in range(1, 6):
        await trainer.submit("forward", request_of(), seq)
        await trainer.submit("forward", request_of(), seq, run_id="other")
    gated.gate.set()
    block_loop_until(lambda: len(gated.order) == 10 and not trainer.dispatcher.is_computing)
    outcomes = [await trainer.outcome(f"{run_id}:{seq}") for run_id in ("run", "other") for seq in range(1, 6)]
    assert {outcome.state for outcome in outcomes} == {SUCCEEDED}


async def test_outcomes_and_policies_come_in_the_order_of_their_operations(trainer, gated, request_of):
    """The first takes a thread to encode, those after it do not."""
    gated.gate.clear()
    large = request_of(lengths=(40,) * 100)
    assert large.ByteSize() > INLINE_BYTES
    await trainer.submit("forward", large, 1)
    for seq in range(2, 6):
        await trainer.submit("publish", pb.PublishRequest(), seq)
    gated.gate.set()
    block_loop_until(lambda: len(gated.order) == 5 and not trainer.dispatcher.is_computing)
    finished = []
    while len(finished) < 5:
        found = (await trainer.poll(ack=finished)).finished
        assert all(operation.state == SUCCEEDED for operation in found)
        finished += [operation.operation_id for operation in found]
    assert finished == [f"run:{seq}" for seq in range(1, 6)]
    assert (await trainer.http.get("/policy_version")).json() == {"versions": {"run": "4"}}


class SpiedExecutor(GatedExecutor):
    """Tells on which threads outcomes were encoded; encodes those of `spoilt` operations badly."""

    def __init__(self, executor):
        super().__init__(executor)
        self.encoding_threads = []
        self.num_spoilt = 0

    def execute(self, run_id, call):
        outcome = super().execute(run_id, call)

        def encode():
            self.encoding_threads.append(threading.current_thread().name)
            if len(self.encoding_threads) <= self.num_spoilt:
                raise MemoryError("no room for it")
            return outcome.encode()

        return dataclasses.replace(outcome, encode=encode)


async def test_nothing_is_encoded_on_the_thread_that_computes(executor, request_of):
    spied = SpiedExecutor(executor)
    async with serving(spied) as trainer:
        await trainer.create()
        await trainer.submit("forward", request_of(), 1)
        await trainer.submit("forward", request_of(lengths=(40,) * 100), 2)
        assert (await trainer.outcome("run:2")).state == SUCCEEDED
    here = threading.current_thread().name
    small, large = spied.encoding_threads
    assert small == here
    assert large not in (here, "torch")


async def test_an_outcome_that_cannot_be_encoded_is_a_failure(executor, request_of):
    spied = SpiedExecutor(executor)
    spied.num_spoilt = 1
    async with serving(spied) as trainer:
        await trainer.create()
        for seq in (1, 2):
            await trainer.submit("forward", request_of(), seq)
        bad, good = [await trainer.outcome(f"run:{seq}") for seq in (1, 2)]
        assert (bad.error.error_class, bad.error.message) == ("MemoryError", "no room for it")
        assert good.state == SUCCEEDED
        metrics = (await trainer.http.get("/metrics")).text
    assert 'farstep_operations_total{outcome="failed",verb="forward"} 1.0' in metrics


async def test_a_run_that_is_being_created_when_the_server_stops_still_is(gated, request_of):
    async with serving(gated) as trainer:
        await trainer.create()
        gated.gate.clear()
        await trainer.submit("forward", request_of(), 1)
        await until(lambda: trainer.dispatcher.is_computing)
        creating = asyncio.create_task(trainer.create("late"))
        await asyncio.sleep(0.02)
        drained = trainer.dispatcher.drain()
        gated.gate.set()
        await drained
        assert (await creating).status_code == 200
    block_loop_until(lambda: not torch_threads())  # it ended with its queue


async def test_whatever_ends_the_thread_ends_the_server(executor, request_of):
    class Broken(GatedExecutor):
        def execute(self, run_id, call):
            raise RuntimeError("not an outcome")

    told = []
    before = signal.signal(signal.SIGTERM, lambda *args: told.append(args))
    try:
        async with serving(Broken(executor)) as trainer:
            await trainer.create()
            await trainer.submit("forward", request_of(), 1)
            await until(lambda: told)
            await trainer.dispatcher.drain()
            outcome = await trainer.outcome("run:1", wait_s=0)
            assert outcome.error.error_class == "ServerShutdownError"
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_traces_tell_when_the_next_operation_could_start(trainer, gated, request_of):
    gated.gate.clear()
    for number in (1, 2):
        await trainer.submit("forward", request_of(), number)
    gated.gate.set()
    await trainer.outcome("run:2")
    first, second = trainer.dispatcher.telemetry.last("run", 2)
    starts = [trace.submitted_at + trace.queued_s for trace in (first, second)]
    assert -1e-3 < starts[1] - (starts[0] + first.computed_s) < 0.5
