"""Where metrics go, and when a run ends before its time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from farstep.trainers.config.model import Name
from farstep.trainers.config.numbers import NonNegative, Positive
from farstep.trainers.config.section import Section


class TrackerConfig(Section):
    """`name` is a tracker's registered name; jsonl is always on, and listed only to say where."""

    name: Name
    enabled: bool = True
    project: Name | None = None
    entity: Name | None = None
    run_name: Name | None = None
    group: Name | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline", "disabled"] | None = None
    dir: Name | None = None
    path: Name | None = Field(default=None, description="jsonl: the file")
    kwargs: Mapping[str, Any] = {}


class EarlyStoppingConfig(Section):
    """Ends the run when `metric` has not got better by `min_delta` for `patience` evaluations."""

    metric: Name = "eval/loss"
    mode: Literal["min", "max"] = "min"
    patience: Positive = 3
    min_delta: NonNegative = 0.0
    threshold: float | None = Field(default=None, description="end as soon as the metric is this good")
