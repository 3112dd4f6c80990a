"""What of a worker's life outlives its process: records of runs and operations, their ends, and snapshots.

It is where the dispatcher meets the journal; without one, it keeps nothing, and everything is told at once. Methods are
for the event loop, but those that say otherwise.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.executor import Executor
from farstep_worker.held_outcomes import HeldOutcomes
from farstep_worker.journal.journal import Journal
from farstep_worker.journal.records import Ending, Part, RecordedRun, SnapshotRow
from farstep_worker.operations import Work, split_operation_id
from farstep_worker.registry import Keep
from farstep_worker.runs import Run
from farstep_worker.snapshots import SnapshotLimits, Snapshots

LAST_SNAPSHOTS_S = 3.0


class Keeper:
    """Args: `to_loop` has a function called on the event loop, from any thread."""

    def __init__(
        self,
        executor: Executor,
        journal: Journal | None,
        *,
        to_loop: Callable[[Callable[[SnapshotRow], None], SnapshotRow], None],
        limits: SnapshotLimits | None = None,
    ) -> None:
        self._executor = executor
        self.journal = journal
        self._outcomes = HeldOutcomes(journal)
        self._kept: dict[str, list[int]] = {}
        self._deleted: set[str] = set()
        self._snapshots: Snapshots | None = None
        if journal is not None:
            self._snapshots = Snapshots(
                journal.snapshots,
                executor.publisher,
                deliver=lambda row: to_loop(self._take_in, row),
                limits=limits,
                is_crowded=lambda: journal.is_crowded,
            )
            executor.publisher.is_over = self._is_over
            executor.on_leave = self._has_left

    # Runs

    @property
    def keep_run(self) -> Keep | None:
        """Writes a run down, for the registry."""
        return None if self.journal is None else self._keep_run

    async def _keep_run(self, run: Run, request: pb.CreateRunRequest) -> None:
        assert self.journal is not None
        self.journal.check_room(request.ByteSize())
        await self.journal.add_run(run.config.run_id, run.incarnation, request)

    async def delete_run(self, run_id: str, endings: list[Ending]) -> None:
        """Returns when that is on the disk, with the ends that its operations have come to."""
        self._deleted.add(run_id)
        self._outcomes.forget_run(run_id)
        if self.journal is not None:
            await self.journal.delete_run(run_id, endings)

    async def settle(self) -> None:
        """Returns when everything is on the disk that was written down by now."""
        if self.journal is not None:
            await self.journal.until(self.journal.last_number)

    # Operations

    def check_room(self, num_bytes: int) -> None:
        """Raises StorageFull, TooManyRequests."""
        if self.journal is not None:
            self.journal.check_room(num_bytes)

    async def add_part(self, part: Part) -> None:
        """Raises StorageFull."""
        if self.journal is not None:
            await self.journal.add_part(part)

    async def withdraw(self, part: Part) -> None:
        if self.journal is not None:
            await self.journal.withdraw(part)

    def withdraw_all(self, operation_id: str) -> None:
        if self.journal is not None:
            self.journal.withdraw_all(*split_operation_id(operation_id))

    async def add_client(self, operation_id: str, client_id: str) -> None:
        """Raises StorageFull."""
        if self.journal is not None:
            await self.journal.add_client(*split_operation_id(operation_id), client_id)

    def ran(self, ending: Ending, tell: Callable[[], None]) -> None:
        """An operation has run; `tell` is called as soon as it may be told."""
        self._outcomes.ran(ending, tell)

    def decided(self, ending: Ending, tell: Callable[[], None]) -> None:
        """An operation will not run."""
        self._outcomes.decided(ending, tell)

    async def cancelled(self, ending: Ending) -> None:
        """Returns when it is on the disk that an operation will not run."""
        number = self._outcomes.decided(ending, lambda: None)
        if self.journal is not None:
            await self.journal.until(number)

    def acknowledged(self, operation_id: str, client_id: str) -> None:
        if self.journal is not None:
            self.journal.acknowledge(*split_operation_id(operation_id), client_id)

    def dropped(self, operation_id: str) -> None:
        """Nobody can ask for its outcome any more."""
        if self.journal is not None:
            self.journal.forget(*split_operation_id(operation_id))

    # On the torch thread

    def executed(self, group: Sequence[Work], seconds: float) -> None:
        if self._snapshots is not None:
            self._snapshots.ran(self._executor.runs, group, seconds)

    def forget_run(self, run_id: str) -> None:
        if self._snapshots is not None:
            self._snapshots.forget(run_id)

    def replayed(self, run_id: str, seconds: float, operations: int) -> None:
        """What a run would take again that was brought back."""
        assert self._snapshots is not None
        self._snapshots.replayed(run_id, seconds, operations)

    def _has_left(self, run: Run, tensors: Mapping[str, Tensor]) -> None:
        assert self._snapshots is not None
        self._snapshots.left(run, tensors)

    def _is_over(self, operation: str) -> bool:
        """Whether what `Run.operation` names cannot come again."""
        incarnation, seq = split_operation_id(operation)
        runs = list(self._executor.runs.items())
        run_id = next((run_id for run_id, run in runs if run.incarnation == incarnation), None)
        return run_id is None or self._outcomes.is_over(run_id, seq)

    # The beginning and the end

    def begin(self, recorded: Sequence[RecordedRun]) -> None:
        """Has files of snapshots removed that do not count, of an earlier process."""
        assert self._snapshots is not None
        for run in recorded:
            seqs = [] if run.is_deleted else sorted(row.seq for row in run.snapshots)
            self._kept[run.run_id] = seqs
            self._snapshots.remove(run.run_id, partial(_is_none_of, frozenset(seqs)))

    def begin_run(self, run: Run) -> None:
        """A run was brought back."""
        self._outcomes.begin(run.config.run_id, run.seq)

    async def close(self, *, take_snapshots: bool) -> None:
        """Ends the taking of snapshots, perhaps with those that spare the next process something."""
        if self._snapshots is not None:
            if take_snapshots:
                await asyncio.to_thread(self._take_last, self._snapshots)
            await asyncio.to_thread(self._snapshots.close)

    def _take_last(self, snapshots: Snapshots) -> None:
        deadline = time.monotonic() + LAST_SNAPSHOTS_S
        for run in list(self._executor.runs.values()):
            if time.monotonic() < deadline:
                snapshots.take(run)

    def _take_in(self, row: SnapshotRow) -> None:
        assert self._snapshots is not None
        if row.run_id not in self._deleted:
            oldest, *_ = self._kept[row.run_id] = [*self._kept.get(row.run_id, ()), row.seq][-2:]
            self._outcomes.snapshot(row, partial(self._snapshots.remove, row.run_id, lambda seq: seq < oldest))


def _is_none_of(kept: frozenset[int], seq: int) -> bool:
    return seq not in kept
