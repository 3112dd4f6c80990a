"""Which resident policy makes room for another: a pure choice, so that it can be read and tested alone.

1. One of a history that is over.
2. One that is not its run's newest: of the run that holds most, the incoming one counted; the least recently used.
3. Its run's newest, in the same order.

So a busy run pushes out its own versions first, and the last one of another run only where nothing else is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from farstep_sampler.versions import PolicyId


@dataclass(frozen=True, slots=True)
class Resident:
    """A policy that holds a slot. `last_used` grows with time."""

    policy: PolicyId
    is_pinned: bool
    is_newest: bool
    is_over: bool
    last_used: int


def choose_victim(residents: Sequence[Resident], *, incoming: PolicyId, per_run: int, num_free: int) -> Resident | None:
    """Who leaves its slot for `incoming`; None where a free slot should be taken, or nobody can leave.

    A run that holds `per_run` already gives up one of its own, also where slots are free; while all of those are
    in use, or its newest, it may hold more.

    The choice may be a pinned one, where there is neither a free slot nor an unpinned one: it leaves when it is free.
    """
    own = [r for r in residents if r.policy.source == incoming.source]
    if len(own) >= per_run:
        old = [r for r in own if not r.is_pinned and (r.is_over or not r.is_newest)]
        if old:
            return min(old, key=lambda r: (not r.is_over, r.last_used))
    if num_free:
        return None
    counts = Counter(r.policy.source for r in residents)
    counts[incoming.source] += 1

    def worth(resident: Resident) -> tuple[bool, bool, bool, int, int]:
        num_of_run = counts[resident.policy.source]
        return resident.is_pinned, not resident.is_over, resident.is_newest, -num_of_run, resident.last_used

    return min(residents, key=worth, default=None)
