"""How long, and how patiently, a fault is retried: decided here, slept elsewhere.

Jittered exponential backoff within a budget of time in which the process was awake; who has slept begins anew. A
fault that lasts is said aloud once, with its reason.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from farstep._awake import clock as awake_clock
from farstep._troubles import troubles
from farstep.errors import FarstepError

log = logging.getLogger("farstep")

_JITTER = random.Random()  # its own: what a program draws from `random` must not depend on our retries


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds."""

    budget_s: float
    warn_after_s: float = 30.0
    first_delay_s: float = 0.1
    max_delay_s: float = 4.0

    def within(self, budget_s: float | None) -> RetryPolicy:
        if budget_s is None:
            return self
        return RetryPolicy(budget_s, self.warn_after_s, self.first_delay_s, self.max_delay_s)


# A submission or any other short request: as long as machines take to come back, and people to find a network.
REQUEST_RETRY = RetryPolicy(budget_s=3600.0)
# The shared poll: outcomes nobody has fetched are kept on the server for a day, so there is no hurry to despair.
POLL_RETRY = RetryPolicy(budget_s=12 * 3600.0)
# The first word to a server that the caller has just named: nothing there is more likely than a hiccup.
CONNECT_BUDGET_S = 10.0


class Backoff:
    """One row of failures, from the first to the end of the budget; a with-block ends it however it is left."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        what: str,
        clock: Callable[[], float] = awake_clock,
        num_sleeps: Callable[[], int] = lambda: awake_clock.num_sleeps,
    ) -> None:
        self._policy = policy
        self._what = what
        self._clock = clock
        self._num_sleeps = num_sleeps
        self._began_at: float | None = None
        self._slept = 0
        self._num_faults = 0
        self._warned = False
        self.lasted_s = 0.0

    def delay_s(self, fault: FarstepError, *, at_least_s: float = 0.0) -> float:
        """How long to wait before the next attempt.

        Raises:
            FarstepError: `fault` itself, when the budget does not last that long.
        """
        now = self._clock()
        if self._began_at is None or self._slept != self._num_sleeps():
            self._began_at, self._slept, self._num_faults = now, self._num_sleeps(), 0
        self.lasted_s = lasted_s = now - self._began_at
        step_s = min(self._policy.first_delay_s * 2.0**self._num_faults, self._policy.max_delay_s)
        delay_s = max(at_least_s, step_s * _JITTER.uniform(0.5, 1.0))
        self._num_faults = min(self._num_faults + 1, 30)
        if lasted_s + delay_s > self._policy.budget_s:
            self.reset()
            raise fault
        troubles.note(self, fault.message)
        if lasted_s >= self._policy.warn_after_s and not self._warned:
            self._warned = True
            left_s = self._policy.budget_s - lasted_s
            log.warning("%s: no success for %.0f s (%s); trying for %.0f s more", self._what, lasted_s, fault, left_s)
        return delay_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.reset()

    def succeed(self) -> None:
        """It works; where it was said aloud that it did not, this is said, too."""
        if self._warned:
            log.warning("%s: works again", self._what)
        self.reset()

    def reset(self) -> None:
        """The row of failures has ended, well or not."""
        troubles.forget(self)
        self._began_at, self._num_faults, self._warned, self.lasted_s = None, 0, False, 0.0
