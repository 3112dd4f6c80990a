"""Where the event loop and the torch thread meet, and the only place where they do.

The loop's side takes submissions, queues them and hands outcomes on; the torch thread's side is the
executor. A call crosses by `_on_torch`, one at a time; nothing else is shared but the runs' counters, which
the loop only reads.

Invariant: every operation that was accepted gets exactly one outcome, also when the server stops.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from farstep_proto.errors import Draining, ModelError
from farstep_proto.paths import Verb
from farstep_proto.v1 import operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_serving.operations import OperationTable
from farstep_worker.assembly import Address, Assembler, digest_of
from farstep_worker.executor import Executor, Outcome
from farstep_worker.feed import PolicyFeed
from farstep_worker.operations import GAP_WAIT_S, OperationQueue, QueueLimits, Work, operation_id
from farstep_worker.registry import DEFAULT_MAX_RUNS, RunRegistry
from farstep_worker.runs import Run
from farstep_worker.submission import Call, Limits
from farstep_worker.telemetry import SpanWriter, Telemetry

log = logging.getLogger(__name__)

DRAIN_S = 8.0
PARSE_INLINE_BYTES = 64 << 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Arrival:
    """Of an operation that has not ended: when its last part was entered (monotonic), and what decoding took."""

    verb: str
    entered: float
    decode_s: float


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
    ) -> None:
        self._executor = executor
        self._feed = feed
        self.registry = RunRegistry(executor, max_runs=max_runs)
        self._queue = OperationQueue(limits=limits, gap_wait_s=gap_wait_s)
        self._assembler = Assembler()
        self._changed = asyncio.Event()
        self._running: Work | None = None
        self._left: list[Work] = []
        self._drained: asyncio.Task[None] | None = None
        # torch's number of threads belongs to the thread that computes
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="torch", initializer=torch.set_num_threads, initargs=(num_threads,)
        )
        self._arrivals: dict[str, _Arrival] = {}
        self.table = OperationTable(queue_place=self._queue.place)
        self.telemetry = Telemetry(gauges=self._gauges, spans=spans)

    def start(self) -> None:
        self._loop_task = asyncio.create_task(self._run(), name="operations")
        self._loop_task.add_done_callback(_end_if_failed)

    async def _run(self) -> None:
        """The main loop: the next operation, its outcome, and so on until the queue is closed."""
        while not self._queue.is_closed:
            self._fail_overdue()
            work = self._queue.take(now=time.monotonic())
            if work is None:
                await self._wait_for_change()
                continue
            self._running = work
            self.table.set_running(work.operation_id)
            started = time.monotonic()
            outcome = await self._on_torch(partial(self._executor.execute, work.run_id, work.call))
            self._running = None
            self._finish(work, outcome, started=started)
        self._fail_left()  # in the same breath, so that one poll brings all

    async def _on_torch(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _finish(self, work: Work, outcome: Outcome, *, started: float) -> None:
        if self.registry.is_deleted(work.run_id):
            self.registry.remove(work.run_id)
            self._drop(work.operation_id, "deleted")
            return
        if outcome.policy is not None:
            self._feed.offer(outcome.policy)
        if self.table.is_pending(work.operation_id):  # else the drain gave it up
            self.table.finish(work.operation_id, outcome.operation)
        self._record(work, outcome, started=started)

    def _record(self, work: Work, outcome: Outcome, *, started: float) -> None:
        arrival = self._arrivals.pop(work.operation_id)
        total_s = time.monotonic() - arrival.entered
        trace = pb.OperationTrace(
            operation_id=work.operation_id,
            verb=arrival.verb,
            failed=outcome.has_failed,
            submitted_at=time.time() - total_s,
            queued_s=started - arrival.entered,
            phases_s={"decode": arrival.decode_s, **outcome.phases_s},
            total_s=total_s,
            num_tokens=work.call.num_tokens,
        )
        self.telemetry.record(work.run_id, trace)

    def _drop(self, operation_id: str, outcome: str) -> None:
        """Counts an operation that will not run."""
        self.telemetry.count(self._arrivals.pop(operation_id).verb, outcome)

    def _gauges(self) -> dict[str, float]:
        return {
            "farstep_runs": len(self.registry.runs),
            "farstep_queued_operations": self._queue.num_operations,
            "farstep_queued_bytes": self._queue.num_bytes,
            "farstep_running_operations": int(self.is_computing),
        }

    async def _wait_for_change(self) -> None:
        deadline = self._queue.next_deadline()
        wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            await asyncio.wait_for(self._changed.wait(), wait_s)
        except TimeoutError:
            return
        self._changed.clear()

    def _fail_overdue(self) -> None:
        for work, missing in self._queue.give_up_gaps(now=time.monotonic()):
            error = ModelError(
                f"seq {missing} of run {work.run_id} never came, so that seq {work.seq} was not run",
                error_class="MissingOperationError",
                hint="submit it again, after finding out what became of the missing one",
            )
            self.table.fail(work.operation_id, error.to_proto())
            self._drop(work.operation_id, "given_up")
            self._forget_parts(operation_id(work.run_id, missing))

    # Runs

    def describe(self, run: Run) -> pb.Run:
        next_seq = self._queue.first_free_seq(run.config.run_id)
        return run.to_proto(vocab_size=self._executor.base.vocab_size, next_seq=next_seq)

    async def create_run(self, request: pb.CreateRunRequest) -> pb.Run:
        """A run by its id, made if it is not there yet; waits for no operation.

        Raises:
            InvalidInput, Conflict: as the registry does.
            Draining: the server takes nothing new.
        """
        if self._queue.is_closed:
            raise Draining("the server is shutting down", retry_after_s=5.0)
        return self.describe(await self.registry.create(request))

    def delete_run(self, run_id: str) -> None:
        """Ends a run at once: what waits or runs of it fails; its checkpoints stay. Again does nothing.

        An operation that is being computed ends first, unheard, and its memory is free after that.

        Raises:
            NotFound: there was never such a run.
        """
        if not self.registry.hide(run_id):
            return
        for work in self._queue.forget(run_id):
            self._drop(work.operation_id, "deleted")
            self.table.fail(work.operation_id, _deleted(run_id).to_proto())
        for wanted in self._assembler.forget_run(run_id):
            del self._arrivals[wanted]
        self._feed.forget(run_id)
        self.telemetry.forget(run_id)
        if self._running is not None and self._running.run_id == run_id:
            self.table.fail(self._running.operation_id, _deleted(run_id).to_proto())
        else:
            self.registry.remove(run_id)

    def limits(self, run: Run) -> Limits:
        return Limits(self._executor.base.vocab_size, run.config.max_seq_len)

    # Operations

    def check_room(self, address: Address, *, num_bytes: int) -> None:
        """Refuses a body of this size before it is read; raises as the queue does."""
        own = self._assembler.size_of(address)
        held = self._assembler.num_bytes - own
        self._queue.check_room(address.run_id, address.seq, num_bytes=own + num_bytes, held_bytes=held)

    async def submit(
        self, address: Address, verb: str, body: bytes, *, client_id: str, parse: Callable[[], Call]
    ) -> operations_pb2.Accepted:
        """Enters an operation, or a part of one; the same again is the same operation.

        `parse` turns the body into a checked call; it runs on another thread where the body is large.

        Raises:
            InvalidInput: the body, or parts that do not belong together.
            Conflict: the seq is taken by other content, or was passed.
            TooManyRequests, Draining: not now.
        """
        digest = digest_of(verb, body, address)
        if not self._is_known(address, verb, digest):
            started = time.monotonic()
            call = parse() if len(body) <= PARSE_INLINE_BYTES else await asyncio.to_thread(parse)
            decode_s = time.monotonic() - started
            if not self._is_known(address, verb, digest):  # it may have come twice meanwhile
                self._enter(address, verb, call, digest=digest, num_bytes=len(body), client_id=client_id)
                self._arrive(address.operation_id, verb, decode_s)
        place = self._queue.place(address.operation_id) + (self._running is not None)
        return operations_pb2.Accepted(operation_id=address.operation_id, queue_place=place)

    def cancel(self, operation_id: str) -> bool:
        """Drops an operation that has not started; says whether it did."""
        dropped = self._queue.cancel(operation_id, now=time.monotonic())
        if dropped:
            self._drop(operation_id, "cancelled")
        return dropped

    def _arrive(self, operation_id: str, verb: str, decode_s: float) -> None:
        """Notes when an operation, or a further part of it, came in."""
        earlier = self._arrivals.get(operation_id)
        before_s = 0.0 if earlier is None else earlier.decode_s
        self._arrivals[operation_id] = _Arrival(verb, time.monotonic(), before_s + decode_s)

    def _is_known(self, address: Address, verb: str, digest: bytes) -> bool:
        if verb == Verb.SKIP:
            self._forget_parts(address.operation_id)  # the rest of them will not come
        if self._assembler.has(address, digest):
            return True
        return self.table.knows(address.operation_id, digest)

    def _forget_parts(self, operation_id: str) -> None:
        if self._assembler.forget(operation_id):
            del self._arrivals[operation_id]

    def _enter(self, address: Address, verb: str, call: Call, *, digest: bytes, num_bytes: int, client_id: str) -> None:
        """All or nothing: whatever can refuse comes first, and nothing here waits."""
        now = time.monotonic()
        self.registry.find(address.run_id)  # it may have been deleted while this came in
        self._queue.check_seq(address.run_id, address.seq)
        self.check_room(address, num_bytes=num_bytes)
        assembled = self._assembler.add(address, call, digest=digest, num_bytes=num_bytes, now=now)
        if assembled is None:
            self._queue.touch_gap(address.run_id, address.seq, now=now)
            return
        self._queue.put(Work(address.run_id, address.seq, assembled.call, assembled.num_bytes), now=now)
        self.table.open(address.operation_id, client_id=client_id, verb=verb, digest=assembled.digest)
        self._changed.set()

    # The end

    @property
    def is_draining(self) -> bool:
        return self._queue.is_closed

    @property
    def is_computing(self) -> bool:
        return self._running is not None

    def drain(self) -> asyncio.Task[None]:
        """Takes nothing new, lets the running operation finish if it does so in time, and fails the rest."""
        if self._drained is None:
            self._drained = asyncio.create_task(self._drain(), name="drain")
        return self._drained

    async def _drain(self) -> None:
        self._left = self._queue.close()
        self._changed.set()
        await asyncio.wait([self._loop_task], timeout=DRAIN_S)
        if self._running is not None:
            log.warning("%s did not finish within %s s", self._running.operation_id, DRAIN_S)
            self._left.insert(0, self._running)
        self._fail_left()
        self.table.drain()
        self._thread.shutdown(wait=False)
        self.registry.close()

    def _fail_left(self) -> None:
        for work in self._left:
            error = Draining(f"the server stopped before {work.operation_id} was done")
            if not self.table.is_pending(work.operation_id):
                continue  # its run was deleted while it was computed
            self.table.fail(work.operation_id, error.to_proto())
        self._left = []


def _end_if_failed(task: asyncio.Task[None]) -> None:
    """Without its main loop a server would only seem to live."""
    if not task.cancelled() and task.exception() is not None:
        log.critical("the main loop failed", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


def _deleted(run_id: str) -> ModelError:
    return ModelError(
        f"run {run_id} was deleted before this was done",
        error_class="RunDeletedError",
        hint="its checkpoints are still there: create a run from one of them",
    )
