"""`Trace`: one call of an operator; `Traces`: the last thousand of them.

While a case is worked on, its calls are noted with it too (`traced`), whichever tasks and threads they were made in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

CAPACITY = 1000

_of_this_case: ContextVar[list[Trace] | None] = ContextVar("farstep_operator_traces", default=None)


@dataclass(frozen=True, slots=True)
class Trace:
    """`error`: "Class: message" where it failed; `output` then is None."""

    operator: str
    inputs: Mapping[str, Any]
    output: Any
    error: str = ""
    took_s: float = 0.0


class Traces:
    """A ring: the newest push the oldest out. Threads may add to it."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ring: deque[Trace] = deque(maxlen=capacity)
        self.num_seen = 0

    def add(self, trace: Trace) -> None:
        self._ring.append(trace)
        self.num_seen += 1
        if (of_this_case := _of_this_case.get()) is not None:
            of_this_case.append(trace)

    def clear(self) -> None:
        self._ring.clear()

    def __len__(self) -> int:
        return len(self._ring)

    def __iter__(self) -> Iterator[Trace]:
        return iter(list(self._ring))

    def __getitem__(self, index: int) -> Trace:
        return self._ring[index]


@contextmanager
def traced() -> Iterator[list[Trace]]:
    """The calls that are made in here, in the order in which they ended."""
    traces: list[Trace] = []
    token = _of_this_case.set(traces)
    try:
        yield traces
    finally:
        _of_this_case.reset(token)
