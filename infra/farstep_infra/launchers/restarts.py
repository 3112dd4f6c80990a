"""When a process that died is started again: decided from how its lives went, without a clock or a process.

Invariant: a process that keeps dying is started ever less often, and after a while not at all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Args:
    first_s: pause after the first quick death; each further one in a row doubles it, up to
    most_s: the longest pause.
    well_s: a life that was ready for so long went well: the row of quick deaths begins anew.
    max_quick_deaths: in a row; then it is given up.
    """

    first_s: float = 0.1
    most_s: float = 30.0
    well_s: float = 5.0
    max_quick_deaths: int = 10


@dataclass(frozen=True, slots=True)
class StartAgain:
    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    pass


@dataclass(frozen=True, slots=True)
class Row:
    """The quick deaths in a row so far."""

    num_deaths: int = 0

    def after_death(self, ready_s: float, policy: RestartPolicy) -> Row:
        """`ready_s`: for how long that life had been ready; 0 where it never was."""
        return Row(1 if ready_s >= policy.well_s else self.num_deaths + 1)

    def next_step(self, policy: RestartPolicy, *, chance: float) -> StartAgain | GiveUp:
        """`chance`, from 0 to 1, takes up to half of the pause off, so that many do not come back at once."""
        if self.num_deaths >= policy.max_quick_deaths:
            return GiveUp()
        pause_s = min(policy.most_s, policy.first_s * 2.0 ** (max(1, self.num_deaths) - 1))
        return StartAgain(pause_s * (1.0 - 0.5 * chance))
