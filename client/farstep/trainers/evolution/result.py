"""What rounds come to, and the error of one that fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from farstep.trainers.errors import TrainerError


class EvolutionError(TrainerError):
    """`epoch`, from 1, and `phase` say where; the cause is what was raised there. `stage` is "evolution"."""

    def __init__(self, message: str = "", *, epoch: int, phase: str, hint: str = "", field: str = "") -> None:
        super().__init__(message, hint=hint, field=field, stage="evolution")
        self.epoch = epoch
        self.phase = phase


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """
    Args:
        epoch: from 1.
        dataset_size: rows that were trained on; `num_dropped` were over the limit.
        loss, accuracy: of the evaluation, else of the training; None where nobody can say.
        path: of the checkpoint that the round ended with; empty without training.
    """

    epoch: int
    dataset_size: int
    num_dropped: int = 0
    loss: float | None = None
    accuracy: float | None = None
    path: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvolutionResult:
    """
    Args:
        best_epoch: of the highest accuracy, of equals the earliest; by the lowest loss where there is no accuracy.
        stopped_because: why it ended before `max_epochs`; empty where it did not.
    """

    epochs: list[EpochRecord]
    final_accuracy: float | None
    early_stopped: bool
    best_epoch: int | None
    stopped_because: str = ""

    @property
    def best(self) -> EpochRecord | None:
        return next((each for each in self.epochs if each.epoch == self.best_epoch), None)

    @property
    def best_path(self) -> str:
        """Where the best weights are."""
        return self.best.path if self.best is not None else ""


def best_of(epochs: list[EpochRecord]) -> EpochRecord | None:
    scored = [each for each in epochs if each.accuracy is not None]
    if scored:
        return max(scored, key=lambda each: each.accuracy or 0.0)  # the first of equals
    lossy = [each for each in epochs if each.loss is not None]
    return min(lossy, key=lambda each: each.loss or 0.0, default=None)
