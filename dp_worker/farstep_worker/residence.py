"""Who must leave memory: decided here, from sizes and the order of use alone; done elsewhere.

Runs differ in size by a thousand times (rank, layers, whether gradients and moments are there), so what is limited is
bytes, not how many runs there are. A run that is busy stays, even where that is too much: its operations were accepted.
"""

from __future__ import annotations

from collections.abc import Callable


class Residence:
    """Runs in memory with their sizes, least recently used first. Args: `budget_bytes` None means no limit."""

    def __init__(self, budget_bytes: int | None) -> None:
        self._budget_bytes = budget_bytes
        self._sizes: dict[str, int] = {}

    def used(self, run_id: str, num_bytes: int) -> None:
        """A run is in memory and was used just now."""
        self._sizes.pop(run_id, None)
        self._sizes[run_id] = num_bytes

    def gone(self, run_id: str) -> None:
        self._sizes.pop(run_id, None)

    @property
    def num_bytes(self) -> int:
        return sum(list(self._sizes.values()))

    def leaving(self, is_busy: Callable[[str], bool]) -> list[str]:
        """Those to go now, so that the others fit, or as many as may go."""
        if self._budget_bytes is None:
            return []
        too_many, leaving = self.num_bytes - self._budget_bytes, []
        for run_id, num_bytes in list(self._sizes.items()):
            if too_many <= 0:
                break
            if not is_busy(run_id):
                leaving.append(run_id)
                too_many -= num_bytes
        return leaving
