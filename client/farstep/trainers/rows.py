"""`Rows`: what a trainer needs of a data set, and the one that is made of rows which are tokens already.

The order of an epoch is a function of seed and epoch alone, so that a resumed run goes on in the middle of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from farstep.trainers.sequence import TrainSequence


class Rows(Protocol):
    """Examples in batches. An example is one sequence, or as many as belong together (a pair)."""

    def __len__(self) -> int:
        """How many examples."""
        ...

    @property
    def num_batches(self) -> int:
        """Of an epoch."""
        ...

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[TrainSequence]]:
        """The batches of an epoch from number `first` on."""
        ...


class SequenceRows:
    """Examples in memory.

    Args:
        examples: the sequences of each.
        shuffle: anew in each epoch.
    """

    def __init__(
        self,
        examples: Sequence[Sequence[TrainSequence]],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self._examples = [list(example) for example in examples]
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last and len(examples) >= batch_size

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def num_batches(self) -> int:
        whole, rest = divmod(len(self._examples), self._batch_size)
        return whole + bool(rest and not self._drop_last)

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[TrainSequence]]:
        order = np.arange(len(self._examples))
        if self._shuffle:
            np.random.default_rng([self._seed, epoch]).shuffle(order)
        for index in range(first, self.num_batches):
            chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
            yield [sequence for place in chosen for sequence in self._examples[place]]


class Repeated:
    """The same rows again and again within an epoch, until it has `num_batches`; or their first batch alone."""

    def __init__(self, rows: Rows, *, num_batches: int, first_batch_only: bool = False) -> None:
        self._rows = rows
        self._first_batch_only = first_batch_only
        self.num_batches = max(num_batches, rows.num_batches)

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, epoch: int, first: int = 0) -> Iterator[list[TrainSequence]]:
        if self._first_batch_only:
            batch = next(iter(self._rows.batches(0)))
            yield from (batch for _ in range(first, self.num_batches))
            return
        per_round = self._rows.num_batches
        rounds = -(-self.num_batches // per_round)
        index = first
        while index < self.num_batches:
            inner = epoch * rounds + index // per_round
            for batch in self._rows.batches(inner, index % per_round):
                if index == self.num_batches:
                    return
                yield batch
                index += 1
