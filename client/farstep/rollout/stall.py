"""A warning where nothing has ended for long, that says what is waited for. Ends nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

log = logging.getLogger("farstep")

_MOST_SHOWN = 5


class StallWatch:
    """Args:
    after_s: without any progress; then again each time that so much more has passed.
    waiting: what is waited for, a line each.
    """

    def __init__(self, after_s: float, waiting: Callable[[], list[str]]) -> None:
        self._after_s = after_s
        self._waiting = waiting
        self._moved_at = self._warned_at = time.monotonic()
        self.num_warnings = 0

    def moved(self) -> None:
        self._moved_at = self._warned_at = time.monotonic()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[StallWatch]:
        task = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._after_s / 4)
            now = time.monotonic()
            if now - self._warned_at >= self._after_s:
                self._warned_at = now
                self.num_warnings += 1
                log.warning("no sample has ended for %.0f s; %s", now - self._moved_at, self._describe())

    def _describe(self) -> str:
        lines = self._waiting()
        if not lines:
            return "nothing is under way"
        more = f"; and {len(lines) - _MOST_SHOWN} more" if len(lines) > _MOST_SHOWN else ""
        return f"waiting for {len(lines)}: {'; '.join(lines[:_MOST_SHOWN])}{more}"
