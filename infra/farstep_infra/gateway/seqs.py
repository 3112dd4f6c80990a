"""Which of a trainer's seqs a Tinker seq is: the one after it, until another client takes numbers of the same run.

The rule is pure (`SeqMap`); what it has come to is in the database before anything is submitted by it.

Invariant: a Tinker seq that was submitted once means the same operation ever after.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from sqlalchemy import select

from farstep_infra.control.db import Database, insert_new
from farstep_infra.control.tables import TinkerSeqRow

_MAX_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class SeqMap:
    """Steps in ascending order: from that Tinker seq on, so much is added. Creation, Tinker's 0, is our 1."""

    steps: tuple[tuple[int, int], ...] = ((0, 1),)

    def ours(self, seq: int) -> int:
        offset = next(offset for from_seq, offset in reversed(self.steps) if from_seq <= seq)
        return seq + offset

    def theirs(self, ours: int) -> int | None:
        """The Tinker seq that a trainer's is; None: it is another client's."""
        candidates = (ours - offset for from_seq, offset in self.steps if ours - offset >= from_seq)
        return next((seq for seq in candidates if self.ours(seq) == ours), None)

    def shifted(self, seq: int, first_free: int) -> SeqMap:
        """The map by which that seq, and all that follow it, come after what others have submitted."""
        assert first_free > self.ours(seq)
        return SeqMap((*(step for step in self.steps if step[0] < seq), (seq, first_free - seq)))


@dataclass(slots=True)
class RunLine:
    """What the gateway knows of a run's numbers.

    Attributes:
        last: the highest Tinker seq that was submitted, as far as this process knows; None: it knows of none.
        missing: those below it that have not come yet.
    """

    map: SeqMap
    last: int | None = None
    missing: set[int] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def comes_early(self, seq: int) -> bool:
        """Whether a seq is the first to leave others out, which are to follow it."""
        return self.last is not None and seq > self.last + 1 and not self.missing

    def has(self, seq: int) -> bool:
        """Whether it was submitted, as far as this process knows."""
        return self.last is not None and seq <= self.last and seq not in self.missing

    def take_back(self, seq: int) -> None:
        """After `note`: nobody has taken it."""
        self.missing.add(seq)

    def note(self, seq: int) -> None:
        """It is being submitted."""
        self.missing.discard(seq)
        if self.last is None:
            self.last = seq
        elif seq > self.last:
            self.missing.update(range(self.last + 1, seq))
            self.last = seq


class RunSeqs:
    """The lines of all runs."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lines: OrderedDict[str, RunLine] = OrderedDict()

    async def of(self, run_id: str) -> RunLine:
        line = self._lines.get(run_id)
        if line is None:
            steps = await self._load(run_id)
            line = self._lines.setdefault(run_id, RunLine(SeqMap(((0, 1), *steps))))
            while len(self._lines) > _MAX_KNOWN:
                self._lines.popitem(last=False)
        return line

    async def shift(self, run_id: str, line: RunLine, seq: int, first_free: int) -> None:
        """From now on that seq is the trainer's `first_free`."""
        shifted = line.map.shifted(seq, first_free)
        async with self._db.transaction() as db:
            there = await db.get(TinkerSeqRow, (run_id, seq))
            if there is not None:
                there.offset = first_free - seq
            else:
                await insert_new(db, TinkerSeqRow, run_id=run_id, from_seq=seq, offset=first_free - seq)
        line.map = shifted

    async def _load(self, run_id: str) -> list[tuple[int, int]]:
        query = select(TinkerSeqRow.from_seq, TinkerSeqRow.offset).where(TinkerSeqRow.run_id == run_id)
        async with self._db.reading() as db:
            rows = (await db.execute(query.order_by(TinkerSeqRow.from_seq))).all()
        return [(from_seq, offset) for from_seq, offset in rows]
