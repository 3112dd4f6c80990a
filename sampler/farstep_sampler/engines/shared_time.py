"""Time that several jobs spend together, divided among them: what a job of an engine costs that batches by itself.

A clock that runs the slower the more are under way: what it advances between a job's beginning and its end is the
job's time for each of its samples. So nothing is done per step, and the shares add up to the time when anything ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedTime:
    """For one thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_sharing = 0
        self._read_at = clock()
        self._shared_s = 0.0

    @contextmanager
    def shared_by(self, count: int) -> Iterator[Callable[[], float]]:
        """Counts so many as under way inside the block; gives how to read what they took so far, in seconds."""
        self._advance()
        began_s = self._shared_s
        self._num_sharing += count
        try:
            yield lambda: (self._advance() - began_s) * count
        finally:
            self._advance()
            self._num_sharing -= count

    def _advance(self) -> float:
        now = self._clock()
        if self._num_sharing:
            self._shared_s += (now - self._read_at) / self._num_sharing
        self._read_at = now
        return self._shared_s
