"""A journal's content, put where it was: runs first, then what waits into the queue and what came of the rest into the
table. On the event loop, before anybody is served.

It decides nothing: `recovery` has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial

from farstep_serving.operations import OperationTable
from farstep_worker.arrivals import Arrivals
from farstep_worker.assembly import Address, Assembler
from farstep_worker.executor import Executor
from farstep_worker.feed import PolicyFeed
from farstep_worker.journal.journal import Journal
from farstep_worker.journal.records import Part, RecordedOperation, RecordedRun
from farstep_worker.keeper import Keeper
from farstep_worker.operations import OperationQueue, Work, operation_id
from farstep_worker.recovery import Recovered, Recovery
from farstep_worker.registry import RunRegistry
from farstep_worker.submission import Call, Skip
from farstep_worker.torch_thread import TorchThread

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restoration:
    """Of one dispatcher, with its parts."""

    executor: Executor
    keeper: Keeper
    torch: TorchThread
    registry: RunRegistry
    feed: PolicyFeed
    table: OperationTable
    queue: OperationQueue
    assembler: Assembler
    arrivals: Arrivals

    async def run(self, journal: Journal) -> None:
        """Everything; afterwards the journal takes new records, and what waits is computed."""
        started = time.monotonic()
        recorded = await asyncio.to_thread(journal.recorded)
        self.keeper.begin(recorded)
        recovery = Recovery(self.executor, journal)
        recovered = {
            each.run_id: await self.torch.call(partial(self._bring_back, recovery, each))
            for each in recorded
            if not each.is_deleted
        }
        journal.start()
        for each in recorded:
            if each.is_deleted:
                self.registry.restore_deleted(each.run_id, each.request.project)
                for operation in each.operations.values():
                    self._end(each.run_id, operation)
            else:
                await self._restore(each, recovered[each.run_id])
        self.torch.wake()
        log.info(
            "the journal has %d runs; %d operations were computed again and %d wait, in %.1f s",
            len(recovered),
            sum(each.num_replayed for each in recovered.values()),
            self.queue.num_operations,
            time.monotonic() - started,
        )

    def _bring_back(self, recovery: Recovery, recorded: RecordedRun) -> Recovered:
        """On the torch thread; the run may leave memory again for the next one."""
        recovered = recovery.bring_back(recorded)
        self.keeper.replayed(recorded.run_id, recovered.seconds, recovered.num_replayed)
        self.torch.make_room()
        return recovered

    async def _restore(self, recorded: RecordedRun, recovered: Recovered) -> None:
        """A run's newest policy, its operations that wait, and the ends of the others."""
        run, plan = recovered.run, recovered.plan
        self.keeper.begin_run(run)
        if run.policy_version:
            policy = await asyncio.to_thread(self.executor.publisher.newest, recorded.run_id, run.policy_version)
            if policy is not None:
                self.feed.offer(policy)
        self.queue.restore(recorded.run_id, next_seq=plan.next_seq, passed=plan.passed)
        waiting = {operation.seq for operation in plan.waiting}
        for operation in recorded.operations.values():
            if operation.seq in waiting:
                self._enter(recorded.run_id, operation, recovered)
            else:
                self._end(recorded.run_id, operation)

    def _end(self, run_id: str, operation: RecordedOperation) -> None:
        """What an operation came to, where somebody may still ask for that."""
        ending = operation.ending
        if ending is None or ending.is_forgotten:
            return
        wanted = operation_id(run_id, operation.seq)
        self.table.restore(
            wanted, clients=operation.clients, verb=ending.verb, digest=ending.digest, outcome=ending.outcome
        )
        if len(operation.parts) > 1:
            self.assembler.remember(wanted, {part.part: part.digest for part in operation.parts})

    def _enter(self, run_id: str, operation: RecordedOperation, recovered: Recovered) -> None:
        now = time.monotonic()
        wanted = operation_id(run_id, operation.seq)
        if recovered.run.lost:  # it fails, whatever it would have been
            self._put(run_id, operation, Skip(), 0, now)
            self.arrivals.note(wanted, operation.parts[0].verb, entered=now, decode_s=0.0)
            return
        for part in operation.parts:
            call = recovered.calls[part.seq, part.part]
            whole = self._assembled(part, call, now)
            if whole is not None:
                self._put(run_id, operation, *whole, now)
            self.arrivals.note(wanted, part.verb, entered=now, decode_s=0.0)

    def _assembled(self, part: Part, call: Call, now: float) -> tuple[Call, int] | None:
        address = Address(part.run_id, part.seq, part.part, part.num_parts)
        assembled = self.assembler.add(address, call, digest=part.digest, num_bytes=part.num_bytes, now=now)
        return None if assembled is None else (assembled.call, assembled.num_bytes)

    def _put(self, run_id: str, operation: RecordedOperation, call: Call, num_bytes: int, now: float) -> None:
        self.queue.put(Work(run_id, operation.seq, call, num_bytes), now=now)
        self.table.restore(
            operation_id(run_id, operation.seq),
            clients=operation.clients,
            verb=operation.parts[0].verb,
            digest=operation.digest,
        )
