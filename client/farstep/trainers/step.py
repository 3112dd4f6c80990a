"""One call of `Trainer.step`: passes and optimizer steps that are submitted, and what they come to when they are done.

Everything of a step is under way before anything of it is waited for; so the next step can be, too. A mean is over all
rows of an optimizer step, however they were cut: each pass is divided by the normalizer of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from farstep.future import Future
from farstep.results import ForwardBackwardOutput, OptimStepResponse
from farstep.trainers.metrics import joined
from farstep.trainers.sequence import TrainSequence


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the data a run stands: the next batch is number `batch` of epoch `epoch`."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True)
class OwnLoss:
    """A loss that was computed here."""

    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """One optimizer step and the passes before it."""

    learning_rate: float
    passes: Sequence[Future[ForwardBackwardOutput]]
    update: Future[OptimStepResponse]
    rows: Sequence[TrainSequence]
    own: OwnLoss | None = None

    def result(self) -> dict[str, float]:
        """Its metrics, when it is done; raises what the first failed operation did."""
        outputs = [each.result() for each in self.passes]
        metrics = joined([dict(each.metrics) for each in outputs]) if outputs else {}
        if self.own is not None:
            metrics = {"loss": self.own.value, **self.own.metrics}
        done = self.update.result().metrics
        return metrics | {
            "learning_rate": self.learning_rate,
            "grad_norm": done.get("grad_norm", 0.0),
            "num_rows": float(len(self.rows)),
            "num_tokens": float(sum(len(row) for row in self.rows)),
            "num_targets": float(sum(row.num_targets for row in self.rows)),
        }


@dataclass(frozen=True, slots=True, eq=False)
class PendingStep:
    """Everything that one pass over a batch makes.

    Args:
        after: where the run stands when it is done.
        before: optimizer steps that were submitted before it.
        is_last: no other pass over the same batch follows.
    """

    updates: Sequence[PendingUpdate]
    after: Position
    before: int
    is_last: bool

    def result(self) -> dict[str, float]:
        """The last optimizer step's metrics; counts and `optimizer_steps` are of all."""
        results = [update.result() for update in self.updates]
        totals = {name: sum(each[name] for each in results) for name in ("num_rows", "num_tokens", "num_targets")}
        return {**results[-1], **totals, "optimizer_steps": float(len(results))}


def numbers(returned: Any) -> dict[str, float]:
    """Metrics of a `step` that somebody else wrote: a mapping, a loss, or nothing."""
    if returned is None:
        return {}
    if isinstance(returned, Mapping):
        return {str(name): float(value) for name, value in returned.items()}
    return {"loss": float(returned)}
