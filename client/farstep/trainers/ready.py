"""`PreparedBatches`: batches whose preparation began before they were asked for.

Between the two the worker may be busy with something else: what a preparation asks of it is queued behind that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class PreparedBatches(Generic[T]):
    """Iterates once.

    Args:
        begin: begins a batch, and gives what ends it.
        ahead: so many batches are begun before the one that is handed out is ended.
    """

    def __init__(self, batches: Iterable[T], begin: Callable[[T], Callable[[], T]], *, ahead: int) -> None:
        self._batches = iter(batches)
        self._begin = begin
        self._ahead = ahead
        self._begun: deque[Callable[[], T]] = deque()

    def __iter__(self) -> Iterator[T]:
        for batch in self._batches:
            self._begun.append(self._begin(batch))
            if len(self._begun) > self._ahead:
                yield self._begun.popleft()()
        while self._begun:
            yield self._begun.popleft()()
