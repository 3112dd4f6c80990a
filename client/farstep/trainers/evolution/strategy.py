"""What a round does: `EvolutionStrategy` says the verbs, `TrainerStrategy` does them with real trainers.

    def make(given):
        return SFTTrainer({"model": {"base": "farstep/tiny", "path": given.path}}, train_data=given.rows)

Each round has a trainer of its own; its weights begin where those of the round before ended, at `round.path`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from farstep.trainers.errors import TrainerError
from farstep.trainers.lifecycle import TrainerState

if TYPE_CHECKING:
    from farstep.trainers.trainer import Trainer

Row = Any


@dataclass(frozen=True, slots=True)
class Round:
    """Number `epoch`, from 1. `path`: the checkpoint that the last round ended with; None in the first."""

    epoch: int
    rows: Sequence[Row]
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """`path`: of the checkpoint. `stopped`: why the run was broken off; empty where it was not."""

    path: str
    loss: float | None = None
    accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    stopped: str = ""


class EvolutionStrategy(Protocol):
    """Each is called at most once a round, in this order; a phase that is not wanted is not called."""

    def synthesize(self, epoch: int, rows: Sequence[Row]) -> Sequence[Row]:
        """All rows of the next training, those that are given among them or not."""
        ...

    def train(self, given: Round) -> Trained: ...

    def evaluate(self, epoch: int) -> Trained:
        """Of what was trained last; `path` may be empty."""
        ...

    def finish(self, epoch: int) -> None:
        """The round is over, however it ended."""
        ...

    def reset(self) -> None:
        """Forgets everything, so that a run begins anew."""
        ...

    def cancel(self, reason: str) -> None:
        """From another thread: what is under way is to end soon."""
        ...


class TrainerStrategy:
    """
    Args:
        make_trainer: of a round, gives a new trainer; it is closed when the round is over.
        synthesize: of epoch and rows, gives rows; None: the rows stay as they are.
        evaluate: of a trainer that has trained, gives an accuracy; None: the trainer's own `evaluate`.
        test_data: for the trainer's own `evaluate`; None: what the trainer has.
        path: to begin the first round from.
    """

    def __init__(
        self,
        make_trainer: Callable[[Round], Trainer],
        *,
        synthesize: Callable[[int, Sequence[Row]], Sequence[Row]] | None = None,
        evaluate: Callable[[Trainer], float] | None = None,
        test_data: Any = None,
        path: str | None = None,
    ) -> None:
        self._make_trainer = make_trainer
        self._synthesize = synthesize
        self._evaluate = evaluate
        self._test_data = test_data
        self._first_path = path
        self._trainer: Trainer | None = None
        self._used: list[Trainer] = []
        self._cancelled = ""

    def synthesize(self, epoch: int, rows: Sequence[Row]) -> Sequence[Row]:
        return rows if self._synthesize is None else self._synthesize(epoch, rows)

    def train(self, given: Round) -> Trained:
        path = given.path if given.path is not None else self._first_path
        trainer = self._make_trainer(Round(given.epoch, given.rows, path))
        if not hasattr(trainer, "train_async") or any(trainer is each for each in self._used):
            what = "a trainer that it gave before" if trainer in self._used else f"a {type(trainer).__name__}"
            raise TrainerError(f"make_trainer gave {what}, not a new trainer", field="make_trainer", stage="evolution")
        self._used.append(trainer)
        self._trainer = trainer
        if self._cancelled:
            trainer.cancel(self._cancelled)
        if trainer.state is TrainerState.CREATED:
            trainer.validate()
        metrics = trainer.train()
        stopped = trainer.early_stop_reason if trainer.state is TrainerState.CANCELLED else ""
        return Trained(path_of(trainer), _finite(metrics.loss), metrics.accuracy, dict(metrics.extra), stopped)

    def evaluate(self, epoch: int) -> Trained:
        trainer = self._trainer
        if trainer is None:
            raise TrainerError("there is nothing that was trained", field="phases", stage="evolution")
        if self._evaluate is not None:
            accuracy = self._evaluate(trainer)
            if isinstance(accuracy, bool) or not isinstance(accuracy, int | float) or not math.isfinite(accuracy):
                raise TrainerError(f"gave {accuracy!r}, not a finite number", field="evaluate", stage="evolution")
            return Trained("", None, float(accuracy))
        found = trainer.evaluate(self._test_data)
        return Trained("", _finite(found.loss), found.accuracy, dict(found.extra))

    def finish(self, epoch: int) -> None:
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            trainer.close()

    def reset(self) -> None:
        self._used.clear()
        self._cancelled = ""

    def cancel(self, reason: str) -> None:
        self._cancelled = reason
        if (trainer := self._trainer) is not None:
            trainer.cancel(reason)


def path_of(trainer: Trainer) -> str:
    """Where another trainer goes on from what this one has come to: a checkpoint, saved now where there is none.

    Of an operator trainer it is the file of its last epoch; the agent itself carries what was learnt.
    """
    from farstep.trainers.checkpoints import StateEngine
    from farstep.trainers.operators.trainer import OperatorTrainer

    if isinstance(trainer, OperatorTrainer):
        return str(trainer.last_checkpoint or "")
    for engine in trainer.engines.all:
        if isinstance(engine, StateEngine) and engine.has_saved(trainer.global_step) and engine.kept:
            return engine.kept[-1].place
    trainer.settle()
    return trainer.client.save_state(f"evolution-{trainer.global_step:06d}", overwrite=True).result().path


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
