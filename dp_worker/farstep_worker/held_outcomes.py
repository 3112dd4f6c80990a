"""When an outcome may be told: one that a replay would come to again at once, any other when it is on the disk.

Within a run outcomes are told in order, so that nothing is known of a run that rests on something not yet written down.
It lives on the event loop, between the main loop and the table.

Invariant: what was told is what a worker that is started anew says, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from farstep_proto.paths import Verb
from farstep_worker.journal.journal import Journal
from farstep_worker.journal.records import Ending, SnapshotRow


@dataclass(slots=True)
class _Held:
    """`until` counts the journal's records; None: a snapshot of the run must come first."""

    seq: int
    until: int | None
    tell: Callable[[], None]


class HeldOutcomes:
    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._held: dict[str, deque[_Held]] = {}
        self._ran: dict[str, int] = {}
        self._over: dict[str, int] = {}
        self._early: dict[str, list[tuple[SnapshotRow, Callable[[], None]]]] = {}

    def ran(self, ending: Ending, tell: Callable[[], None]) -> None:
        """An operation has run; `tell` is called now or later, once."""
        if self._journal is None:
            tell()
            return
        number = self._journal.add_ending(ending, lazy=ending.is_repeatable)
        self._ran[ending.run_id] = ending.seq
        self._journal.when(number, lambda: self._over.__setitem__(ending.run_id, ending.seq))
        if ending.is_repeatable:
            self._hold(ending, 0, tell)
        elif ending.verb == Verb.LOAD_STATE and ending.succeeded:
            self._hold(ending, None, tell)  # the checkpoint may be another one when it would be loaded again
        else:
            self._hold(ending, number, tell)
        for row, then in self._early.pop(ending.run_id, []):
            self.snapshot(row, then)

    def decided(self, ending: Ending, tell: Callable[[], None]) -> int:
        """An operation will not run; the number of its record."""
        if self._journal is None:
            tell()
            return 0
        number = self._journal.add_ending(ending, lazy=False)
        self._hold(ending, number, tell)
        return number

    def snapshot(self, row: SnapshotRow, then: Callable[[], None]) -> None:
        """Takes a snapshot in once all that it covers is written down; `then` is called when it counts."""
        assert self._journal is not None
        if self._ran.get(row.run_id, 0) < row.seq:
            self._early.setdefault(row.run_id, []).append((row, then))
            return
        number = self._journal.add_snapshot(row)
        for held in self._held.get(row.run_id, ()):
            if held.until is None and held.seq <= row.seq:
                held.until = number
        self._journal.when(number, then)
        self._journal.when(number, lambda: self._release(row.run_id))

    def begin(self, run_id: str, seq: int) -> None:
        """A run that was brought back had run up to there."""
        self._ran[run_id] = self._over[run_id] = seq

    def is_over(self, run_id: str, seq: int) -> bool:
        """Whether the end of an operation that ran is on the disk; on any thread."""
        return self._journal is None or seq <= self._over.get(run_id, 0)

    def forget_run(self, run_id: str) -> None:
        for kept in (self._held, self._ran, self._over, self._early):
            kept.pop(run_id, None)

    def _hold(self, ending: Ending, until: int | None, tell: Callable[[], None]) -> None:
        assert self._journal is not None
        self._held.setdefault(ending.run_id, deque()).append(_Held(ending.seq, until, tell))
        if until:
            self._journal.when(until, lambda: self._release(ending.run_id))
        else:
            self._release(ending.run_id)

    def _release(self, run_id: str) -> None:
        assert self._journal is not None
        held = self._held.get(run_id)
        while held and held[0].until is not None and held[0].until <= self._journal.written:
            held.popleft().tell()
        if held is not None and not held:
            self._held.pop(run_id, None)
