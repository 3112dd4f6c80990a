"""What may go wrong with one HTTP exchange, and a seeded choice of it. It decides; `faulty_proxy` acts."""

from __future__ import annotations

import enum
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass


class Fault(enum.Enum):
    """`delivered` means: the server has the whole request, and acts on it."""

    NONE = "none"
    DROP_RESPONSE = "drop_response"  # delivered and answered; the connection ends instead of the answer
    DUPLICATE = "duplicate"  # delivered twice, one after the other; the second answer is given
    LATE_DUPLICATE = "late_duplicate"  # answered, and some time later delivered again
    CUT_REQUEST = "cut_request"  # half of the body is delivered, then both connections end
    CUT_RESPONSE = "cut_response"  # delivered; half of the answer's body is given, then the connection ends
    DELAY = "delay"  # delivered after a while
    BLACK_HOLE = "black_hole"  # taken, never delivered, and no word for a while
    RESET = "reset"  # a TCP reset as soon as the request is here, never delivered


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and what was done to it."""

    method: str
    path: str
    fault: Fault


class FaultPlan:
    """Draws a fault for each request, the same row for the same seed; which request meets which is the traffic's.

    Args:
        rates: of each fault among the requests that `applies` lets through, in sum at most 1.
        most: after so many faults there are no more; None: no end.
    """

    def __init__(
        self,
        rates: Mapping[Fault, float] | None = None,
        *,
        seed: int = 0,
        applies: Callable[[str, str], bool] = lambda method, path: True,
        most: int | None = None,
    ) -> None:
        self._rates = dict(rates or {})
        assert sum(self._rates.values()) <= 1
        self._random = random.Random(seed)
        self._applies = applies
        self._most = most
        self._scripted: list[tuple[str, Fault]] = []
        self._lock = threading.Lock()
        self.counts: Counter[Fault] = Counter()

    @classmethod
    def everything(cls, rate: float, *, seed: int, most: int | None = None) -> FaultPlan:
        """Every kind alike, together at that rate."""
        kinds = [fault for fault in Fault if fault is not Fault.NONE]
        return cls(dict.fromkeys(kinds, rate / len(kinds)), seed=seed, most=most)

    def next_one(self, path_part: str, fault: Fault) -> None:
        """The next request with this in its path meets this fault, whatever the rates."""
        with self._lock:
            self._scripted.append((path_part, fault))

    def stop(self) -> None:
        """No more faults."""
        with self._lock:
            self._rates, self._scripted = {}, []

    @property
    def num_faults(self) -> int:
        return sum(count for fault, count in self.counts.items() if fault is not Fault.NONE)

    def draw(self, method: str, path: str) -> Fault:
        with self._lock:
            fault = self._take_scripted(path) or self._draw(method, path)
            self.counts[fault] += 1
            return fault

    def _take_scripted(self, path: str) -> Fault | None:
        for index, (part, fault) in enumerate(self._scripted):
            if part in path:
                del self._scripted[index]
                return fault
        return None

    def _draw(self, method: str, path: str) -> Fault:
        if not self._applies(method, path) or (self._most is not None and self.num_faults >= self._most):
            return Fault.NONE
        number = self._random.random()
        for fault, rate in self._rates.items():
            number -= rate
            if number < 0:
                return fault
        return Fault.NONE
