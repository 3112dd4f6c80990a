"""`Evolution`: rounds of synthesis, training and evaluation, in this order, until one is good enough.

    idle ──run──▶ running ──▶ completed | failed | cancelled ──reset──▶ idle

It decides nothing of models and data: that is the strategy's. Invariant: it runs from idle alone, and the records of
rounds that were finished stay, whatever becomes of the next.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from farstep.errors import FarstepError
from farstep.trainers.errors import TrainerError
from farstep.trainers.evolution.config import EvolutionConfig, Phase
from farstep.trainers.evolution.result import EpochRecord, EvolutionError, EvolutionResult, best_of
from farstep.trainers.evolution.strategy import EvolutionStrategy, Round, Row, Trained

log = logging.getLogger("farstep")


class EvolutionState(StrEnum):
    IDLE = "idle"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Evolution:
    """
    Args:
        config: an `EvolutionConfig`, or its settings.
        on_epoch: called with the record of each round that is finished.
    """

    def __init__(
        self,
        strategy: EvolutionStrategy,
        config: EvolutionConfig | Mapping[str, Any] | None = None,
        *,
        on_epoch: Callable[[EpochRecord], object] | None = None,
    ) -> None:
        self.config = config if isinstance(config, EvolutionConfig) else EvolutionConfig(**dict(config or {}))
        self.state = EvolutionState.IDLE
        self.epochs: list[EpochRecord] = []
        self._strategy = strategy
        self._on_epoch = on_epoch
        self._lock = threading.Lock()
        self._cancelled = ""

    def run(self, rows: Sequence[Row] = ()) -> EvolutionResult:
        """All rounds; once, until `reset`.

        Raises:
            TrainerError: it is not idle.
            EvolutionError: a phase failed; it has the epoch, and the cause.
        """
        with self._lock:
            if self.state is not EvolutionState.IDLE:
                raise TrainerError(f"run needs an evolution that is idle, and this one is {self.state}",
                                   stage="evolution", hint="reset() makes it idle")  # fmt: skip
            self.state = EvolutionState.RUNNING
        try:
            stopped, is_enough = self._rounds(rows)
        except KeyboardInterrupt:
            self.state = EvolutionState.CANCELLED
            raise
        except BaseException:
            self.state = EvolutionState.FAILED
            raise
        self.state = EvolutionState.CANCELLED if stopped and not is_enough else EvolutionState.COMPLETED
        best = best_of(self.epochs)
        last = self.epochs[-1].accuracy if self.epochs else None
        return EvolutionResult(list(self.epochs), last, is_enough, best.epoch if best is not None else None, stopped)

    async def run_async(self, rows: Sequence[Row] = ()) -> EvolutionResult:
        """`run` on another thread. Cancelling it ends the run soon, in state cancelled."""
        running = asyncio.ensure_future(asyncio.to_thread(self.run, rows))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self.cancel("the task was cancelled")
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    def cancel(self, reason: str = "cancelled") -> None:
        """Ends it when what is under way has ended; from any thread."""
        self._cancelled = reason
        self._strategy.cancel(reason)

    def reset(self) -> None:
        """Idle again, without a past.

        Raises:
            TrainerError: it is running.
        """
        with self._lock:
            if self.state is EvolutionState.RUNNING:
                raise TrainerError("it is running", stage="evolution", hint="cancel() first")
            self._strategy.reset()
            self.epochs, self._cancelled = [], ""
            self.state = EvolutionState.IDLE

    def _rounds(self, rows: Sequence[Row]) -> tuple[str, bool]:
        """Why it stopped early, if it did, and whether that was because it is good enough."""
        path: str | None = None
        for epoch in range(1, self.config.max_epochs + 1):
            if self._cancelled:
                return self._cancelled, False
            try:
                record, rows, stopped = self._round(epoch, rows, path)
            finally:
                self._finish(epoch)
            self.epochs.append(record)
            path = record.path or path
            if self._on_epoch is not None:
                self._on_epoch(record)
            if stopped:
                return stopped, False
            enough = self.config.early_stop_threshold
            if enough and record.accuracy is not None and record.accuracy >= enough:
                return f"accuracy {record.accuracy:.4g} is as good as wanted ({enough:g})", True
        return "", False

    def _round(self, epoch: int, rows: Sequence[Row], path: str | None) -> tuple[EpochRecord, Sequence[Row], str]:
        phases = self.config.phases
        if "synthesis" in phases:
            with self._phase(epoch, "synthesis"):
                rows = _listed(self._strategy.synthesize(epoch, rows))
        limit = self.config.max_dataset_size
        num_dropped = max(0, len(rows) - limit) if limit else 0
        rows = rows[:limit] if num_dropped else rows
        trained = Trained("")
        if "training" in phases:
            with self._phase(epoch, "training"):
                trained = self._strategy.train(Round(epoch, rows, path))
        judged = trained
        if "evaluation" in phases and not trained.stopped:
            with self._phase(epoch, "evaluation"):
                judged = self._strategy.evaluate(epoch)
                if judged.accuracy is None and self.config.early_stop_threshold:
                    raise TrainerError("the evaluation gives no accuracy, and a threshold is to be reached",
                                       field="early_stop_threshold",
                                       hint="give the trainer a reward_fn, or the strategy evaluate=")  # fmt: skip
        record = EpochRecord(
            epoch,
            len(rows),
            num_dropped,
            judged.loss if judged.loss is not None else trained.loss,
            judged.accuracy if judged is not trained or "evaluation" not in phases else None,
            trained.path,
            {**trained.metrics, **judged.metrics},
        )
        return record, rows, trained.stopped

    def _finish(self, epoch: int) -> None:
        try:
            self._strategy.finish(epoch)
        except Exception as error:
            log.warning("at the end of epoch %d: %s: %s", epoch, type(error).__name__, error)

    @contextmanager
    def _phase(self, epoch: int, phase: Phase) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            said = error.message if isinstance(error, FarstepError) else f"{type(error).__name__}: {error}"
            about = {"hint": error.hint, "field": error.field} if isinstance(error, FarstepError) else {}
            raise EvolutionError(f"epoch {epoch}, {phase}: {said}", epoch=epoch, phase=phase, **about) from error


def _listed(rows: Any) -> Sequence[Row]:
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Sequence):
        raise TrainerError(f"gave a {type(rows).__name__}, not a list of rows", field="synthesize")
    return rows
