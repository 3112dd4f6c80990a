"""Metrics as lines of JSON in a file: always on. A resumed run goes on in the same file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from farstep.trainers.events import plain
from farstep.trainers.trackers.base import TrackedRun, Tracker


class JSONLTracker(Tracker):
    name = "jsonl"

    def start(self, run: TrackedRun) -> str:
        self._path = Path(run.settings.get("path") or run.output_dir / "metrics.jsonl")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return str(self._path)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain(metrics)}) + "\n")
