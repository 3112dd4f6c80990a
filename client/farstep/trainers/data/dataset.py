"""`Dataset`: what is trained on, ready: groups of sequences by number. It has no order of its own; `Loader` has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from farstep.trainers.data.report import DataReport
from farstep.trainers.data.table import Table
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence

Group = tuple[TrainSequence, ...]


class Examples(Protocol):
    """What batches can be made of."""

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Group: ...


@dataclass(frozen=True)
class Dataset:
    """`dataset[i]` is a group: one sequence, or two (chosen, rejected) that are never parted.

    Args:
        report: what became of the rows that it was made of.
        from_cache: whether it was read instead of made.
    """

    table: Table
    rows_per_group: int = 1
    report: DataReport = field(default_factory=DataReport)
    from_cache: bool = False

    def __len__(self) -> int:
        return len(self.table) // self.rows_per_group

    def __getitem__(self, index: int) -> Group:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)}")
        first = (index % len(self)) * self.rows_per_group
        return tuple(self.table[first + place] for place in range(self.rows_per_group))

    def __iter__(self) -> Iterator[Group]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """The hash of its tokens and masks: equal fingerprints, equal data."""
        return self.table.fingerprint()

    @classmethod
    def of(cls, groups: Sequence[Sequence[TrainSequence]]) -> Dataset:
        """A dataset of sequences that are there already.

        Raises:
            DataError: groups of different sizes.
        """
        sizes = {len(group) for group in groups}
        if len(sizes) > 1:
            raise DataError(f"groups of {sorted(sizes)} sequences: all must have the same number", field="groups")
        sequences = [sequence for group in groups for sequence in group]
        places = [(-1, index) for index, group in enumerate(groups) for _ in group]
        table = Table.of(sequences, places)
        report = DataReport(rows=len(groups), used=len(groups), sequences=len(sequences), tokens=int(table.starts[-1]))
        return cls(table, sizes.pop() if sizes else 1, report)
