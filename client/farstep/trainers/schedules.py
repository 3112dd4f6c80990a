"""Schedules: what the learning rate is multiplied with at each optimizer step. Pure; the same step, the same number.

The forms are those of `transformers.get_scheduler`, so that a run that comes from there keeps its curve: `step` counts
from 0, warm-up is step / warmup_steps (so that step 0 of a warm-up has rate 0), and a decay reaches its end at
`total_steps`. After it the rate stays where it ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from farstep.trainers.registry import Registered

Decay = Literal["linear", "cosine", "sqrt"]


@dataclass(frozen=True)
class Schedule(Registered):
    """step → multiplier. One of your own says `after_warmup`, or `__call__` to do without a warm-up.

    Args:
        total_steps: optimizer steps of the whole run.
        warmup_steps: how many of them lead up to 1.
        min_lr_ratio: where a decay ends.
        decay_steps: how many steps at the end decay (`wsd`); None: a tenth of all.
        decay: in which form (`wsd`).
    """

    total_steps: int
    warmup_steps: int = 0
    min_lr_ratio: float = 0.0
    decay_steps: int | None = None
    decay: Decay = "linear"

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        return self.after_warmup(step)

    def after_warmup(self, step: int) -> float:
        raise NotImplementedError

    def _above_floor(self, factor: float) -> float:
        return max(0.0, factor * (1 - self.min_lr_ratio) + self.min_lr_ratio)

    def _progress(self, step: int) -> float:
        """0 at the end of the warm-up, 1 at the end of the run and after it."""
        return min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))


class ConstantSchedule(Schedule):
    name = "constant"

    def after_warmup(self, step: int) -> float:
        return 1.0


class LinearSchedule(Schedule):
    name = "linear"

    def after_warmup(self, step: int) -> float:
        return self._above_floor(1 - self._progress(step))


class CosineSchedule(Schedule):
    name = "cosine"

    def after_warmup(self, step: int) -> float:
        return self._above_floor(0.5 * (1 + math.cos(math.pi * self._progress(step))))


class WSDSchedule(Schedule):
    """Warm-up, stable, decay (arXiv 2404.06395): at the top until the last `decay_steps`."""

    name = "wsd"

    def after_warmup(self, step: int) -> float:
        decay_steps = self.decay_steps if self.decay_steps is not None else math.ceil(self.total_steps / 10)
        begin = max(self.warmup_steps, self.total_steps - decay_steps)
        if step < begin:
            return 1.0
        progress = min(1.0, (step - begin) / max(1, self.total_steps - begin))
        match self.decay:
            case "linear":
                factor = 1 - progress
            case "cosine":
                factor = 0.5 * (1 + math.cos(math.pi * progress))
            case "sqrt":
                factor = 1 - math.sqrt(progress)
        return self._above_floor(factor)


def share_of(steps: int | None, ratio: float | None, total_steps: int) -> int | None:
    """A number of steps that was given as such or as a share of all; rounded up, as transformers does."""
    if steps is not None:
        return min(steps, total_steps)
    return math.ceil(ratio * total_steps) if ratio is not None else None
