"""Where what comes in over the wire meets the thread that computes.

The loop's side takes submissions, queues them and delivers outcomes; the torch thread's side takes from the
queue and executes. They share the queue and, to read, the runs' counters; the rest crosses by `torch_thread`.

With a journal, an operation is on the disk before it enters the queue and before it is acknowledged, and what is left
when the server stops is for the next one; without, it fails.

Invariant: every operation that was accepted gets exactly one outcome, also when the server stops or is killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from functools import partial

from farstep_proto.errors import ApiError, Draining, ModelError
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_serving.keys import OPERATOR, Caller
from farstep_serving.operations import OperationTable, cancelled
from farstep_serving.usage import UsageCounters
from farstep_worker.arrivals import Arrivals
from farstep_worker.executor import Executor
from farstep_worker.feed import PolicyFeed
from farstep_worker.journal.journal import Journal
from farstep_worker.journal.records import Ending
from farstep_worker.keeper import Keeper
from farstep_worker.operations import (
    GAP_WAIT_S,
    OperationQueue,
    QueueLimits,
    Work,
    operation_id,
    split_operation_id,
)
from farstep_worker.ranks import RankDied
from farstep_worker.reception import INLINE_BYTES, Reception
from farstep_worker.registry import DEFAULT_MAX_RUNS, RunRegistry
from farstep_worker.restoration import Restoration
from farstep_worker.runs import Run
from farstep_worker.snapshots import SnapshotLimits
from farstep_worker.submission import Limits
from farstep_worker.telemetry import SpanWriter, Telemetry
from farstep_worker.torch_thread import Ended, TorchThread
from farstep_worker.usage import trainer_usage

log = logging.getLogger(__name__)

DRAIN_S = 8.0
FAILED = operations_pb2.OPERATION_STATE_FAILED
LIST_PAGE = 1000


class Dispatcher:
    def __init__(
        self,
        executor: Executor,
        *,
        feed: PolicyFeed,
        num_threads: int,
        max_runs: int = DEFAULT_MAX_RUNS,
        limits: QueueLimits | None = None,
        gap_wait_s: float = GAP_WAIT_S,
        spans: SpanWriter | None = None,
        journal: Journal | None = None,
        snapshots: SnapshotLimits | None = None,
    ) -> None:
        self._executor = executor
        self._feed = feed
        self.registry = RunRegistry(executor, max_runs=max_runs)
        self._queue = OperationQueue(limits=limits, gap_wait_s=gap_wait_s)
        self._keeper = Keeper(executor, journal, to_loop=lambda do, row: self._torch.to_loop(do, row), limits=snapshots)
        self._torch = TorchThread(
            executor, self._queue, num_threads=num_threads, on_start=self._on_start, after=self._keeper.executed
        )
        self._gap_timer: asyncio.TimerHandle | None = None
        self._left: list[Work] = []
        self._drained: asyncio.Task[None] | None = None
        self.table = OperationTable(
            queue_place=self._queue.place, on_acknowledged=self._keeper.acknowledged, on_dropped=self._keeper.dropped
        )
        self.telemetry = Telemetry(gauges=self._gauges, spans=spans)
        self._arrivals = Arrivals(self.telemetry)
        self.usage = UsageCounters()
        self.reception = Reception(
            self.registry,
            self._queue,
            self.table,
            self._keeper,
            self._arrivals,
            on_entered=self._on_entered,
            on_crowded=lambda: self._fail_overdue(crowded=True),
            is_computing=lambda: self.is_computing,
        )

    def start(self) -> None:
        self._torch.start()
        self._loop_task = asyncio.create_task(self._run(), name="operations")
        self._loop_task.add_done_callback(_end_if_failed)

    async def _run(self) -> None:
        """The main loop: the outcome of each operation that ran, in that order, until the torch thread ends."""
        while (ended := await self._torch.next_ended()) is not None:
            started = time.monotonic()
            operation = await self._encode(ended)
            encode_s = time.monotonic() - started
            self._finish(ended, operation, encode_s=encode_s)
        self._fail_left()

    async def _encode(self, ended: Ended) -> operations_pb2.Operation:
        if ended.work.num_bytes <= INLINE_BYTES:
            return ended.outcome.operation
        return await asyncio.to_thread(lambda: ended.outcome.operation)

    def _finish(self, ended: Ended, operation: operations_pb2.Operation, *, encode_s: float) -> None:
        work = ended.work
        self.usage.add(trainer_usage(self.registry.project_of(work.run_id) or "", ended, operation))
        if self.registry.is_deleted(work.run_id) or not self.table.is_pending(work.operation_id):
            return  # its end was told when the run was deleted, or the drain gave it up
        if self._keeper.journal is not None and operation.error.error_class == RankDied.error_class:
            return  # the process ends; the next one does it again
        ending, data = self._ending(work.operation_id, operation, ran=True)
        self._keeper.ran(ending, lambda: self._tell(ended, operation, data, encode_s=encode_s))
        if self._queue.is_closed and not self._torch.has_more:
            self._fail_left()  # in the same breath, so that one poll brings all

    def _tell(self, ended: Ended, operation: operations_pb2.Operation, data: bytes, *, encode_s: float) -> None:
        work = ended.work
        if self.registry.is_deleted(work.run_id) or not self.table.is_pending(work.operation_id):
            return
        if ended.outcome.policy is not None:
            self._feed.offer(ended.outcome.policy)
        self.table.finish_sealed(work.operation_id, data, state=operation.state)
        self._arrivals.ran(ended, operation, encode_s=encode_s)

    def _ending(self, wanted: str, operation: operations_pb2.Operation, *, ran: bool) -> tuple[Ending, bytes]:
        """An operation's end, for the journal and for the table."""
        data = self.table.sealed(wanted, operation)
        run_id, seq = split_operation_id(wanted)
        return Ending(run_id, seq, operation.verb, self.table.digest(wanted), ran, operation.state, data), data

    def _on_entered(self) -> None:
        self._torch.wake()
        self._watch_gaps()

    def _on_start(self, work: Work) -> None:
        if not self.registry.is_deleted(work.run_id):
            self.table.set_running(work.operation_id)
        self._watch_gaps()

    def _gauges(self) -> dict[str, float]:
        return {
            "farstep_runs": len(self.registry.runs),
            "farstep_evicted_runs": sum(run.away is not None for run in self.registry.runs),
            "farstep_resident_bytes": self._executor.resident_bytes,
            "farstep_queued_operations": self._queue.num_operations,
            "farstep_queued_bytes": self._queue.num_bytes,
            "farstep_running_operations": len(self._torch.running),
        }

    def _watch_gaps(self) -> None:
        """Fails what has waited too long for an earlier operation, and comes back when something else will have."""
        self._fail_overdue()
        if self._gap_timer is not None:
            self._gap_timer.cancel()
            self._gap_timer = None
        deadline = self._queue.next_deadline()
        if deadline is not None:
            delay_s = max(0.0, deadline - time.monotonic())
            self._gap_timer = asyncio.get_running_loop().call_later(delay_s, self._watch_gaps)

    def _fail_overdue(self, *, crowded: bool = False) -> None:
        for work, missing in self._queue.give_up_gaps(now=time.monotonic(), crowded=crowded):
            error = ModelError(
                f"seq {missing} of run {work.run_id} never came, so that seq {work.seq} was not run",
                error_class="MissingOperationError",
                hint="submit it again, after finding out what became of the missing one",
            )
            self._drop(work.operation_id, failure(error), "given_up")
            self.reception.forget_parts(operation_id(work.run_id, missing))

    def _drop(self, wanted: str, operation: operations_pb2.Operation, why: str) -> None:
        """Gives a waiting operation an end without running it."""
        self._arrivals.dropped(wanted, why)
        ending, data = self._ending(wanted, operation, ran=False)

        def tell() -> None:
            if self.table.is_pending(wanted):
                self.table.finish_sealed(wanted, data, state=operation.state)

        self._keeper.decided(ending, tell)

    # Runs

    def describe(self, run: Run) -> pb.Run:
        run_id = run.config.run_id
        in_parts = self.reception.assembler.open_seqs(run_id)
        next_seq = max(self._queue.first_free_seq(run_id), *(seq + 1 for seq in in_parts), 1)
        described = run.to_proto(vocab_size=self._executor.base.vocab_size, next_seq=next_seq)
        described.missing_seqs.extend(self._queue.missing_seqs(run_id, below=next_seq))
        return described

    async def create_run(self, request: pb.CreateRunRequest, caller: Caller = OPERATOR) -> pb.Run:
        """A run by its id, made if it is not there yet; waits for no operation.

        Raises:
            InvalidInput, Conflict: as the registry does.
            Draining: the server takes nothing new.
            StorageFull: it cannot be written down.
        """
        if self._queue.is_closed:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        run = await self.registry.create(request, caller, keep=self._keeper.keep_run)
        self._torch.post(self._torch.make_room)
        return self.describe(run)

    async def delete_run(self, run_id: str) -> None:
        """Ends a run at once: what waits or runs of it fails; its checkpoints stay. Again does nothing.

        An operation that is being computed ends unheard, and the run's memory is free after that.

        Raises:
            NotFound: there was never such a run.
        """
        if not self.registry.hide(run_id):
            await self._keeper.settle()  # the first time may not be over
            return
        self._queue.forget(run_id)
        self.reception.assembler.forget_run(run_id)
        endings = []
        for wanted in self._arrivals.of_run(run_id):
            self._arrivals.dropped(wanted, "deleted")
            if self.table.is_pending(wanted):  # else some of its parts are missing
                endings.append(self._ending(wanted, failure(_deleted(run_id)), ran=False)[0])
        await self._keeper.delete_run(run_id, endings)
        for ending in endings:
            wanted = operation_id(run_id, ending.seq)
            if self.table.is_pending(wanted):  # else it was cancelled meanwhile
                self.table.finish_sealed(wanted, ending.outcome, state=FAILED)
        self.usage.end(self.registry.project_of(run_id) or "", run_id)
        self._feed.forget(run_id)
        self.telemetry.forget(run_id)
        self._torch.post(partial(self._forget_run, run_id))

    def _forget_run(self, run_id: str) -> None:
        """On the torch thread."""
        self._executor.delete_run(run_id)
        self._keeper.forget_run(run_id)

    def limits(self, run: Run) -> Limits:
        return run.config.limits(self._executor.base.vocab_size)

    # Operations

    def list_operations(self, run_id: str, *, unfetched: bool, after: int) -> operations_pb2.ListOperationsResponse:
        """A page of a run's operations by seq, from the one after `after` on, without outcomes."""
        operations = self.table.list_of(f"{run_id}:", unfetched=unfetched)
        named = [(split_operation_id(operation.operation_id), operation) for operation in operations]
        by_seq = {seq: operation for (whose, seq), operation in named if whose == run_id}  # ids may hold colons
        seqs = sorted(seq for seq in by_seq if seq > after)
        page = [by_seq[seq] for seq in seqs[:LIST_PAGE]]
        next_page = str(seqs[LIST_PAGE - 1]) if len(seqs) > LIST_PAGE else ""
        return operations_pb2.ListOperationsResponse(operations=page, next_page=next_page)

    async def cancel(self, operation_id: str) -> bool:
        """Drops an operation that has not started; says whether it did, once that is on the disk."""
        dropped = self._queue.cancel(operation_id, now=time.monotonic())
        if dropped:
            self._arrivals.dropped(operation_id, "cancelled")
            self._watch_gaps()
            ending, _ = self._ending(operation_id, cancelled(), ran=False)
            await self._keeper.cancelled(ending)
        return dropped

    async def recover(self) -> None:
        """Brings back what the journal has, before anybody is served; `start` comes first."""
        if self._keeper.journal is None:
            return
        try:
            await self._restoration().run(self._keeper.journal)
        except BaseException:  # nobody will be served: the thread that computes must not hold the process
            self._queue.close()
            self._torch.wake()
            raise
        self._watch_gaps()

    def _restoration(self) -> Restoration:
        return Restoration(
            self._executor,
            self._keeper,
            self._torch,
            self.registry,
            self._feed,
            self.table,
            self._queue,
            self.reception.assembler,
            self._arrivals,
        )

    # The end

    @property
    def is_draining(self) -> bool:
        return self._queue.is_closed

    @property
    def is_computing(self) -> bool:
        return bool(self._torch.running)

    def drain(self) -> asyncio.Task[None]:
        """Takes nothing new, lets the running operation finish if it does so in time, and fails the rest."""
        if self._drained is None:
            self._drained = asyncio.create_task(self._drain(), name="drain")
        return self._drained

    async def _drain(self) -> None:
        self._left = self._queue.close()
        self._torch.wake()
        await asyncio.wait([self._loop_task], timeout=DRAIN_S)
        for work in self._torch.running:
            log.warning("%s did not finish within %s s", work.operation_id, DRAIN_S)
            self._left.append(work)
        self._fail_left()
        self.table.drain()
        self.registry.close()
        await self._keeper.close(take_snapshots=not self._torch.running)

    def _fail_left(self) -> None:
        left, self._left = self._left, []
        if self._keeper.journal is not None:
            return  # it is for whoever comes next
        for work in left:
            error = Draining(f"the server stopped before {work.operation_id} was done")
            if not self.table.is_pending(work.operation_id):
                continue  # its run was deleted while it was computed
            self.table.fail(work.operation_id, error.to_proto())


def _end_if_failed(task: asyncio.Task[None]) -> None:
    """Without its main loop a server would only seem to live."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("the main loop failed", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


def failure(error: ApiError) -> operations_pb2.Operation:
    return operations_pb2.Operation(state=FAILED, error=error.to_proto())


def _deleted(run_id: str) -> ModelError:
    return ModelError(
        f"run {run_id} was deleted before this was done",
        error_class="RunDeletedError",
        hint="its checkpoints are still there: create a run from one of them",
    )
