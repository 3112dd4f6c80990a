"""`Tracker`: takes the metrics of steps. One that fails is said once, and the run goes on without a gap elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from farstep.trainers.registry import Registered

log = logging.getLogger("farstep")


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of the run.

    Args:
        settings: the tracker's part of the configuration, by name.
        config: the whole configuration, for show.
        resume_id: what `start` gave when the run was begun; "" for a new run.
    """

    name: str
    output_dir: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    resume_id: str = ""


class Tracker(Registered):
    """One of your own has a `name`, and is asked for by it in the configuration."""

    homes: ClassVar[Mapping[str, str]] = {
        "jsonl": "farstep.trainers.trackers.jsonl:JSONLTracker",
        "wandb": "farstep.trainers.trackers.wandb:WandbTracker",
        "tensorboard": "farstep.trainers.trackers.tensorboard:TensorBoardTracker",
        "trackio": "farstep.trainers.trackers.trackio:TrackioTracker",
    }
    entry_point_group = "farstep.trackers"

    @classmethod
    def require(cls) -> None:
        """Raises MissingExtraError where a package is not installed; asked before anything is paid for."""

    def start(self, run: TrackedRun) -> str:
        """Gives what the run can be gone on with by `resume_id`."""
        raise NotImplementedError

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        raise NotImplementedError

    def finish(self, state: str) -> None:
        """`state`: completed, failed or cancelled."""


class Trackers:
    """All trackers of a run, none of which can end it."""

    def __init__(self, trackers: Sequence[tuple[Tracker, TrackedRun]]) -> None:
        self._wanted = trackers
        self._running: list[Tracker] = []
        self._complained: set[str] = set()
        self.ids: dict[str, str] = {}

    def start(self) -> None:
        for tracker, run in self._wanted:
            try:
                self.ids[tracker.name] = tracker.start(run)
            except Exception as error:
                self._complain(tracker, "does not start", error)
            else:
                self._running.append(tracker)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self._running:
            try:
                tracker.log(metrics, step)
            except Exception as error:
                self._complain(tracker, "takes no metrics", error)

    def finish(self, state: str) -> None:
        for tracker in self._running:
            try:
                tracker.finish(state)
            except Exception as error:
                self._complain(tracker, "does not finish", error)
        self._running = []

    def _complain(self, tracker: Tracker, what: str, error: Exception) -> None:
        if tracker.name not in self._complained:
            log.warning("the tracker %s %s, training goes on: %s: %s", tracker.name, what, type(error).__name__, error)
        self._complained.add(tracker.name)
