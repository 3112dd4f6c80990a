"""Batches whose preparation began before they were asked for.

Between the two the worker may be busy with something else: what a preparation asks of it is queued behind that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from farstep.trainers.step import Position

T = TypeVar("T")


def prepared(batches: Iterable[T], begin: Callable[[T], Callable[[], T]], *, ahead: int) -> Iterator[T]:
    """Batches of no epoch in particular, such as those of an evaluation."""
    placed = ((Position(0, index), batch) for index, batch in enumerate(batches))
    return PreparedBatches(placed, begin, ahead=ahead).of_epoch(0)


class PreparedBatches(Generic[T]):
    """The batches of a run from one place on, whose preparation knows no border between epochs.

    Args:
        batches: each with its place, epoch after epoch.
        begin: begins a batch, and gives what ends it.
        ahead: so many batches are begun before the one that is handed out is ended.
    """

    def __init__(
        self, batches: Iterable[tuple[Position, T]], begin: Callable[[T], Callable[[], T]], *, ahead: int
    ) -> None:
        self._batches = iter(batches)
        self._begin = begin
        self._ahead = ahead
        self._begun: deque[tuple[Position, Callable[[], T]]] = deque()
        self._next: tuple[Position, T] | None = None

    @property
    def place(self) -> Position | None:
        """Of the batch that comes next; None where none does."""
        if self._begun:
            return self._begun[0][0]
        found = self._peeked()
        return None if found is None else found[0]

    def of_epoch(self, epoch: int) -> Iterator[T]:
        """What is left of an epoch. Of the next one no more is begun than `ahead`."""
        while (place := self.place) is not None and place.epoch == epoch:
            while len(self._begun) <= self._ahead and (found := self._peeked()) is not None:
                self._next = None
                self._begun.append((found[0], self._begin(found[1])))
            _, end = self._begun.popleft()
            yield end()

    def _peeked(self) -> tuple[Position, T] | None:
        if self._next is None:
            self._next = next(self._batches, None)
        return self._next
