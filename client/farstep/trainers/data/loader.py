"""Batches of groups in an order that anybody can find again: a function of seed and epoch, and a cursor into it.

Invariant: whoever goes on from a saved cursor sees the batches that the interrupted run would have seen, to the token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from farstep.trainers.data.dataset import Examples, Group
from farstep.trainers.data.order import Indices, permutation
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next batch: its number in its epoch, both from 0.

    Args:
        data: of what; a cursor into other data is refused.
        skipped: rows that were left out since the epoch began, where batches are made as they are asked for.
    """

    epoch: int = 0
    batch: int = 0
    data: str = ""
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: what a checkpoint keeps."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Cursor:
        """
        Raises:
            DataError: it is no cursor.
        """
        try:
            epoch, batch = value["epoch"], value["batch"]
            data, skipped = value.get("data", ""), value.get("skipped", 0)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"no cursor: {value!r}", field="cursor") from error
        if not (all(map(_is_count, (epoch, batch, skipped))) and isinstance(data, str)):
            raise DataError(f"no cursor: {value!r}", field="cursor")
        return cls(epoch, batch, data, skipped)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Args:
        groups: the examples; a group's sequences stay together.
        indices: their numbers in the data set.
        epoch, index: which batch it is, both from 0.
        cursor: what comes after it: to be saved with what was learnt from it.
        is_last: of its epoch.
    """

    groups: tuple[Group, ...]
    indices: tuple[int, ...]
    epoch: int
    index: int
    cursor: Cursor
    is_last: bool = False

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def sequences(self) -> list[TrainSequence]:
        """Of all groups, one after another."""
        return [sequence for group in self.groups for sequence in group]


class Loader:
    """
    Args:
        batch_size: groups of a batch.
        seed: of the order; each epoch has its own.
        shuffle: False: the data set's order, in every epoch.
        drop_last: leave a batch out that would be smaller than the others.
        min_iterations: an epoch goes on with the data, in another order, until it has so many batches.
        overfit_first_batch: every batch is the first one.

    Raises:
        DataError: no batch can be made.
    """

    def __init__(
        self,
        dataset: Examples,
        batch_size: int,
        *,
        seed: int = 42,
        shuffle: bool = True,
        drop_last: bool = False,
        min_iterations: int = 0,
        overfit_first_batch: bool = False,
    ) -> None:
        if batch_size < 1:
            raise DataError(f"{batch_size}, and at least 1 is needed", field="batch_size")
        if not len(dataset):
            raise DataError("there are no rows", field="dataset")
        if drop_last and len(dataset) < batch_size and min_iterations <= 0:
            hint = "a smaller batch_size, or drop_last: false"
            raise DataError(f"{len(dataset)} rows make no batch of {batch_size}", field="data.drop_last", hint=hint)
        self.dataset = dataset
        self.batch_size = batch_size
        self._seed, self._shuffle = seed, shuffle
        self._overfit = overfit_first_batch
        self._drop_last = drop_last
        once = len(dataset) // batch_size if drop_last else -(-len(dataset) // batch_size)
        self._num_batches = max(once, min_iterations)
        # An epoch that repeats the data has only whole batches.
        self._num_groups = len(dataset) if self._num_batches == once else self._num_batches * batch_size
        self._order: Callable[[int], Indices] = lru_cache(maxsize=2)(self._order_of)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._num_batches

    @property
    def data(self) -> str:
        """Names the data and its order: equal where batches are."""
        how = f"{self._seed}.{self._shuffle}.{self._drop_last}.{self._num_batches}.{self.batch_size}.{self._overfit}"
        return f"{self.dataset.fingerprint[:16]}.{len(self.dataset)}.{how}"

    def start(self, epoch: int = 0) -> Cursor:
        """Before the first batch of an epoch."""
        return Cursor(epoch, 0, self.data)

    def batches(self, cursor: Cursor | None = None) -> Iterator[Batch]:
        """The batches from the cursor to its epoch's end.

        Raises:
            DataError: at once, if the cursor is of other data, or of none of its batches.
        """
        place = self.start() if cursor is None else cursor
        self.check(place)
        return (self.batch(place.epoch, number) for number in range(place.batch, self._num_batches))

    def check(self, cursor: Cursor) -> None:
        """
        Raises:
            DataError: the cursor is of other data, or of none of its batches.
        """
        if cursor.data and cursor.data != self.data:
            raise DataError(
                f"the cursor is of other data, or of another order: {cursor.data}, and this is {self.data}",
                field="cursor",
                hint="data, tokenizer, seed and batch_size must be as they were; to begin anew, start(epoch)",
            )
        if cursor.batch > self._num_batches:
            raise DataError(f"batch {cursor.batch} of {self._num_batches}", field="cursor")

    def num_groups_of(self, number: int) -> int:
        """How many groups batch `number` has."""
        if self._overfit:
            return min(self.batch_size, len(self.dataset))
        return min(self.batch_size, self._num_groups - number * self.batch_size)

    def batch(self, epoch: int, number: int) -> Batch:
        """One batch, wherever it is."""
        if not 0 <= number < self._num_batches:
            raise DataError(f"batch {number} of {self._num_batches}", field="number")
        start = 0 if self._overfit else number * self.batch_size
        order = self._order(0 if self._overfit else epoch)
        indices = tuple(order[start : start + self.batch_size].tolist())
        is_last = number + 1 == self._num_batches
        after = Cursor(epoch + 1, 0, self.data) if is_last else Cursor(epoch, number + 1, self.data)
        return Batch(tuple(self.dataset[index] for index in indices), indices, epoch, number, after, is_last)

    def _order_of(self, epoch: int) -> Indices:
        """[num_groups] numbers: the data once, or as often as the epoch needs it."""
        times = -(-self._num_groups // len(self.dataset))
        rounds = [
            permutation(len(self.dataset), self._seed, "epoch", epoch, again)
            if self._shuffle
            else np.arange(len(self.dataset), dtype=np.int64)
            for again in range(times)
        ]
        return np.concatenate(rounds)[: self._num_groups]
