"""Metrics as TensorBoard event files, written by tensorboardX or by torch's writer, whichever is there."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from farstep.errors import MissingExtraError
from farstep.trainers.trackers.base import TrackedRun, Tracker


class TensorBoardTracker(Tracker):
    name = "tensorboard"

    @classmethod
    def require(cls) -> None:
        _writer()

    def start(self, run: TrackedRun) -> str:
        directory = Path(run.settings.get("dir") or run.output_dir / "tensorboard")
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = _writer()(str(directory), **run.settings.get("kwargs", {}))
        return str(directory)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, state: str) -> None:
        self._writer.close()


def _writer() -> Any:
    for module in ("tensorboardX", "torch.utils.tensorboard"):
        try:
            return import_module(module).SummaryWriter
        except ImportError:
            continue
    raise MissingExtraError("the tracker tensorboard needs a writer", hint="pip install 'farstep[tensorboard]'")
