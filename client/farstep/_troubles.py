"""What does not answer at present, and since when: one line of it for whoever waits, and a word when it works again.

Lives on the background loop; any thread may read it. It decides nothing: without it every retry goes the same way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from farstep import _progress

QUIET_S = 3.0
TICK_S = 0.5


class Troubles:
    """One entry for each row of failures that has not ended, whoever's it is."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rows: dict[object, tuple[float, str]] = {}
        self._showing: asyncio.Task[None] | None = None

    def note(self, row: object, reason: str) -> None:
        """Another failure of that row."""
        since, _ = self._rows.get(row, (self._clock(), ""))
        self._rows[row] = since, reason
        if self._showing is None and _progress.is_shown():
            with suppress(RuntimeError):  # no loop: nobody waits
                self._showing = asyncio.get_running_loop().create_task(self._show())

    def forget(self, row: object) -> None:
        """It has ended, well or not."""
        self._rows.pop(row, None)

    def describe(self, url: str = "") -> str:
        """What has not answered for longest, of those at that address, in words; empty where all is well."""
        rows = [(since, reason) for since, reason in list(self._rows.values()) if url in reason]
        if not rows:
            return ""
        since, reason = min(rows)
        lasted_s = self._clock() - since
        return f"{reason}; trying again for {lasted_s:.0f} s" if lasted_s >= QUIET_S else ""

    async def _show(self) -> None:
        """A line of its own, unless another wait has one: that says it, too."""
        began_at = self._clock()
        was_shown = False
        try:
            while self._rows:
                await asyncio.sleep(TICK_S)
                text = self.describe()
                if text:
                    was_shown |= await self._show_line(text)
            if was_shown:
                _progress.say(f"works again after {self._clock() - began_at:.0f} s")
        finally:
            self._showing = None

    async def _show_line(self, text: str) -> bool:
        with _progress.line(text) as update:
            while text and update is not None:
                update(text)
                await asyncio.sleep(TICK_S)
                text = self.describe()
            return update is not None


troubles = Troubles()
