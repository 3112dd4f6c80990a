"""A journal's content, put where it was: runs first, then what waits into the queue and what came of the rest into the
table. On the event loop, before anybody is served.

It decides nothing: `recovery` has.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from farstep_serving.operations import OperationTable
from farstep_worker.arrivals import Arrivals
from farstep_worker.assembly import Address, Assembler
from farstep_worker.journal.records import Part, RecordedOperation, RecordedRun
from farstep_worker.operations import OperationQueue, Work, operation_id
from farstep_worker.recovery import Recovered
from farstep_worker.submission import Call, Skip


@dataclass(frozen=True, slots=True)
class Restoration:
    """Of one dispatcher."""

    table: OperationTable
    queue: OperationQueue
    assembler: Assembler
    arrivals: Arrivals

    def run(self, recorded: RecordedRun, recovered: Recovered) -> None:
        """A run's operations: those that wait, and the ends of the others."""
        plan = recovered.plan
        self.queue.restore(recorded.run_id, next_seq=plan.next_seq, passed=plan.passed)
        waiting = {operation.seq for operation in plan.waiting}
        for operation in recorded.operations.values():
            if operation.seq in waiting:
                self._enter(recorded.run_id, operation, recovered)
            else:
                self.ending(recorded.run_id, operation)

    def ending(self, run_id: str, operation: RecordedOperation) -> None:
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
