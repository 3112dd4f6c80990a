"""The states of a trainer, and which way leads from one to the next. Knows nothing of models or data.

    created ──mark_validated──▶ validated ──train──▶ training ──▶ completed | failed | cancelled

Invariant: what is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from farstep.trainers.errors import TrainerError


class TrainerState(StrEnum):
    CREATED = "created"
    VALIDATED = "validated"
    TRAINING = "training"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


_NEXT = {
    TrainerState.CREATED: {TrainerState.VALIDATED},
    TrainerState.VALIDATED: {TrainerState.TRAINING},
    TrainerState.TRAINING: {TrainerState.COMPLETED, TrainerState.FAILED, TrainerState.CANCELLED},
}
_UNCHECKED = {TrainerState.CREATED, TrainerState.VALIDATED}


class Lifecycle:
    """Where a trainer stands, and which checks it has passed."""

    def __init__(self, needs: Sequence[str]) -> None:
        self.state = TrainerState.CREATED
        self._needs = tuple(needs)
        self._passed: set[str] = set()
        self.was_checked = False  # a check was made, whatever came of it

    @property
    def missing(self) -> list[str]:
        """Checks that are needed and have not passed."""
        return [need for need in self._needs if need not in self._passed]

    def may_check(self, check: str) -> None:
        """Raises TrainerError once training has begun; until then a check may be made again."""
        if self.state not in _UNCHECKED:
            raise TrainerError(
                f"check_{check} belongs before training, and this trainer is {self.state}",
                hint="make a new trainer",
                stage="validate",
            )

    def passed(self, check: str) -> None:
        self.was_checked = True
        self._passed.add(check)

    def failed(self, check: str) -> None:
        """A check that was made again and did not pass stands in the way, whatever it said before."""
        self.was_checked = True
        self._passed.discard(check)
        if self.state is TrainerState.VALIDATED and check in self._needs:
            self.state = TrainerState.CREATED

    def mark_validated(self) -> None:
        self._require(TrainerState.VALIDATED, "mark_validated")
        if self.missing:
            calls = ", ".join(f"check_{name}" for name in self.missing)
            raise TrainerError(
                f"these checks have not passed yet: {', '.join(self.missing)}",
                hint=f"call {calls}, or give the data to the constructor and call validate()",
                stage="validate",
            )
        self.state = TrainerState.VALIDATED

    def begin(self) -> None:
        self._require(TrainerState.TRAINING, "train")
        self.state = TrainerState.TRAINING

    def end(self, state: TrainerState) -> None:
        self._require(state, str(state))
        self.state = state

    def _require(self, wanted: TrainerState, call: str) -> None:
        if wanted in _NEXT.get(self.state, set()):
            return
        needed = next(state for state, nexts in _NEXT.items() if wanted in nexts)
        over = self.state in (TrainerState.COMPLETED, TrainerState.FAILED, TrainerState.CANCELLED)
        hint = "call validate() first" if self.state is TrainerState.CREATED else ""
        raise TrainerError(
            f"{call} needs a trainer that is {needed}, and this one is {self.state}",
            hint="one trainer trains once: make a new one" if over else hint,
            stage="train" if call == "train" else "validate",
        )
