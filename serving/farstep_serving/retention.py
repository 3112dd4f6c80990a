"""How long outcomes are kept: those that somebody has yet to acknowledge for long, the others as long as there is room.

It knows ids, sizes and the clock; the outcomes themselves are the table's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """
    Args:
        acknowledged_s: how long an acknowledged outcome is kept, if there are not too many:
        max_acknowledged, max_acknowledged_bytes: beyond these the oldest go.
        unclaimed_s: how long an outcome is kept that nobody ever acknowledges.
    """

    acknowledged_s: float
    unclaimed_s: float
    max_acknowledged: int
    max_acknowledged_bytes: int


class Retention:
    """Args: `num_bytes_of`: the size of an outcome that is kept."""

    def __init__(
        self, limits: RetentionLimits, clock: Callable[[], float], *, num_bytes_of: Callable[[str], int]
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._num_bytes_of = num_bytes_of
        # Each in the order in which they go, with until when.
        self._unclaimed: OrderedDict[str, float] = OrderedDict()
        self._acknowledged: deque[str] = deque()
        self._until: deque[float] = deque()
        self._num_bytes = 0  # of the acknowledged

    @property
    def num_unclaimed(self) -> int:
        return len(self._unclaimed)

    def keep(self, operation_id: str) -> None:
        """There is an outcome, of which somebody has to hear."""
        self._unclaimed[operation_id] = self._clock() + self._limits.unclaimed_s

    def acknowledge(self, operation_id: str) -> bool:
        """Everybody has it; whether that is new."""
        if self._unclaimed.pop(operation_id, None) is None:
            return False
        self._acknowledged.append(operation_id)
        self._until.append(self._clock() + self._limits.acknowledged_s)
        self._num_bytes += self._num_bytes_of(operation_id)
        return True

    def forget(self, operation_id: str) -> None:
        """Rare: it looks through all that were acknowledged."""
        if self._unclaimed.pop(operation_id, None) is None:
            place = self._acknowledged.index(operation_id)
            del self._acknowledged[place], self._until[place]
            self._num_bytes -= self._num_bytes_of(operation_id)

    def overdue(self) -> Iterator[str]:
        """Those that go now, and are forgotten by that; amortized constant work a call."""
        now, limits = self._clock(), self._limits
        while self._acknowledged:
            is_too_many = len(self._acknowledged) > limits.max_acknowledged
            if self._until[0] > now and not is_too_many and self._num_bytes <= limits.max_acknowledged_bytes:
                break
            self._until.popleft()
            operation_id = self._acknowledged.popleft()
            self._num_bytes -= self._num_bytes_of(operation_id)
            yield operation_id
        while self._unclaimed:
            operation_id, until = next(iter(self._unclaimed.items()))
            if until > now:
                break
            del self._unclaimed[operation_id]
            yield operation_id
