"""`Rows`: what a trainer needs of a data set, and data sets of sequences that are there already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence

if TYPE_CHECKING:
    from farstep.trainers.data.dataset import Examples, Group
    from farstep.trainers.data.loader import Loader


class Rows(Protocol):
    """Examples in batches. An example is one sequence, or as many as belong together (a pair).

    The order of an epoch is known beforehand, so that a resumed run goes on in the middle of it.
    """

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    @property
    def num_batches(self) -> int:
        """Of an epoch."""
        ...

    @property
    def identity(self) -> str:
        """Equal where examples and order are."""
        ...

    @property
    def report(self) -> Mapping[str, Any]:
        """What became of the rows that they were made of."""
        ...

    def num_examples(self, index: int) -> int:
        """Of batch number `index`."""
        ...

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[TrainSequence]]:
        """The batches of an epoch from number `first` on."""
        ...


class LoadedRows:
    """Of a `Loader`."""

    def __init__(self, loader: Loader, report: Mapping[str, Any]) -> None:
        self._loader = loader
        self.report = report

    def __len__(self) -> int:
        return len(self._loader.dataset)

    @property
    def num_batches(self) -> int:
        return len(self._loader)

    @property
    def identity(self) -> str:
        return self._loader.data

    def num_examples(self, index: int) -> int:
        return self._loader.num_groups_of(index)

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[TrainSequence]]:
        for index in range(first, self.num_batches):
            yield self._loader.batch(epoch, index).sequences


class NoRows:
    """An empty set, which is no mistake in an evaluation."""

    num_batches = 0
    identity = ""
    report: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return 0

    def num_examples(self, index: int) -> int:
        return 0

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[TrainSequence]]:
        return iter(())


class GivenExamples:
    """Sequences in memory, with all that is known of them."""

    def __init__(self, groups: Sequence[Sequence[TrainSequence]]) -> None:
        self._groups = [tuple(group) for group in groups]

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Group:
        return self._groups[index]

    @cached_property
    def fingerprint(self) -> str:
        from farstep.trainers.data.table import Table

        sequences = [sequence for group in self._groups for sequence in group]
        return Table.of(sequences, [(-1, index) for index in range(len(sequences))]).fingerprint()


def given_examples(rows: Sequence[Any], rows_per_group: int, *, field: str) -> Examples:
    """Sequences by example: as they are grouped, or so many that follow each other.

    Raises:
        DataError: they are not whole groups.
    """
    if all(isinstance(row, TrainSequence) for row in rows):
        if len(rows) % rows_per_group:
            raise DataError(f"{len(rows)} sequences are not whole groups of {rows_per_group}", field=field)
        return GivenExamples([rows[first : first + rows_per_group] for first in range(0, len(rows), rows_per_group)])
    for index, row in enumerate(rows):
        if isinstance(row, TrainSequence) or len(row) != rows_per_group:
            number = 1 if isinstance(row, TrainSequence) else len(row)
            raise DataError(f"{number} sequences, and {rows_per_group} belong together", field=f"{field}[{index}]")
    return GivenExamples(rows)
