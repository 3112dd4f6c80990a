"""Why a run ends before its data do. Decides; saves and ends nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farstep.trainers.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Exit:
    """`is_cancelled`: somebody wanted an end. `is_early`: there was more to do, which another run may go on with."""

    reason: str
    is_cancelled: bool = False
    is_early: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """`exit_step` and `exit_steps_this_run` 0: none."""

    max_steps: int | None = None
    exit_step: int = 0
    exit_steps_this_run: int = 0
    kill_switch: str | None = None

    def reached(self, *, step: int, steps_this_run: int) -> Exit | None:
        """Asked before each step, when `step` of them are made."""
        if self.kill_switch is not None and Path(self.kill_switch).expanduser().exists():
            return Exit(f"the kill switch {self.kill_switch} is there: remove it to go on", is_cancelled=True)
        if self.max_steps is not None and step >= self.max_steps:
            return Exit(f"max_steps ({self.max_steps}) reached", is_early=False)
        if self.exit_step and step >= self.exit_step:
            return Exit(f"exit_iteration ({self.exit_step}) reached")
        if self.exit_steps_this_run and steps_this_run >= self.exit_steps_this_run:
            return Exit(f"exit_iteration_this_run ({self.exit_steps_this_run}) reached")
        return None


@dataclass(slots=True)
class EarlyStopping:
    """Ends a run whose evaluations do not get better. `best` and `num_bad` travel with checkpoints.

    Args:
        metric: such as "eval/loss".
        mode: "min" or "max" is better.
        patience: so many evaluations without an improvement of `min_delta` end the run.
        threshold: as good as this ends it at once.
    """

    metric: str = "eval/loss"
    mode: str = "min"
    patience: int = 3
    min_delta: float = 0.0
    threshold: float | None = None
    best: float = math.nan
    num_bad: int = 0

    def look(self, metrics: Mapping[str, float]) -> Exit | None:
        """After an evaluation.

        Raises:
            ConfigError: the first one has no such metric.
        """
        if self.metric not in metrics:
            if not metrics or not math.isnan(self.best):  # of nothing, or of something else by hand
                return None
            names = ", ".join(sorted(metrics))
            raise ConfigError(f"an evaluation gives no {self.metric!r}", field="early_stopping.metric",
                              hint=f"it gives {names}")  # fmt: skip
        value, sign = metrics[self.metric], 1.0 if self.mode == "max" else -1.0
        if self.threshold is not None and sign * value >= sign * self.threshold:
            self.best, self.num_bad = value, 0
            return Exit(f"{self.metric} is {value:.4g}, as good as wanted ({self.threshold:g})")
        if math.isnan(self.best) or sign * (value - self.best) > self.min_delta:
            self.best, self.num_bad = value, 0
            return None
        self.num_bad += 1
        if self.num_bad < self.patience:
            return None
        return Exit(f"{self.metric} has not got better than {self.best:.4g} in {self.num_bad} evaluations")

    def state(self) -> dict[str, Any]:
        return {"best": None if math.isnan(self.best) else self.best, "num_bad": self.num_bad}

    def load(self, state: Mapping[str, Any]) -> None:
        best = state.get("best")
        self.best, self.num_bad = math.nan if best is None else float(best), int(state.get("num_bad", 0))
