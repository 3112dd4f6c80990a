"""Time in which this process was awake, and the moment at which it wakes.

A laptop sleeps, a process is stopped: on some systems the monotonic clock goes on meanwhile, on others it stands
still and only the wall clock tells. Either way nobody tried anything in that time, so no budget may count it, and
connections from before are not to be trusted. For the background loop alone, which looks every second.

Invariant: it never runs faster than the monotonic clock, and never goes back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK_S = 1.0
SLEPT_S = 10.0  # a loop may be late by less because the machine is busy


class AwakeClock:
    """`num_sleeps` counts the times that the process has woken."""

    def __init__(
        self, *, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._on_wake: list[Callable[[], None]] = []
        self._asleep_s = 0.0
        self.num_sleeps = 0
        self._begin()

    def __call__(self) -> float:
        self._look()
        return self._looked_at - self._asleep_s

    def on_wake(self, callback: Callable[[], None]) -> None:
        """Calls it at every waking, on the background loop."""
        self._on_wake.append(callback)

    def keep_looking(self, loop: asyncio.AbstractEventLoop) -> None:
        """From a loop that begins now, for as long as it runs."""
        self._begin()
        self._tick(loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look()
        loop.call_later(TICK_S, self._tick, loop)

    def _begin(self) -> None:
        self._looked_at, self._wall_at = self._monotonic(), self._wall()

    def _look(self) -> None:
        passed_s = self._monotonic() - self._looked_at
        jumped_s = self._wall() - self._wall_at - passed_s
        self._begin()
        stood_still_s = passed_s - TICK_S
        if stood_still_s > SLEPT_S:
            self._asleep_s += stood_still_s
        if stood_still_s > SLEPT_S or jumped_s > SLEPT_S:
            self.num_sleeps += 1
            for callback in self._on_wake:
                callback()


clock = AwakeClock()
