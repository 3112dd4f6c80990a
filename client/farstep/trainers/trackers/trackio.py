"""Metrics to trackio, a local dashboard with the calls of wandb. A resumed run goes on under the same name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farstep.errors import MissingExtraError
from farstep.trainers.trackers.base import TrackedRun, Tracker


class TrackioTracker(Tracker):
    name = "trackio"

    @classmethod
    def require(cls) -> None:
        try:
            import trackio  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(
                "the tracker trackio needs trackio", hint="pip install 'farstep[trackio]'"
            ) from error

    def start(self, run: TrackedRun) -> str:
        import trackio

        given = run.settings
        name = run.resume_id or given.get("run_name") or run.name
        self._run: Any = trackio.init(
            project=given.get("project") or "farstep",
            name=name,
            group=given.get("group"),
            config=dict(run.config),
            resume="allow" if run.resume_id else "never",
            **given.get("kwargs", {}),
        )
        return str(self._run.name)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, state: str) -> None:
        self._run.finish()
