"""A run's folder on this machine: which run it is, where it was saved last, and that nobody else writes here.

    <output_dir>/<name>/   run.json   events.jsonl   metrics.jsonl   batches.jsonl   report.html   rollouts/   lock
                           step-000100/ …

`run.json` is replaced whole. What an earlier run left is moved to `earlier/`, never mixed with what follows.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import IO, Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.events import read_events

RUN, EVENTS, METRICS = "run.json", "events.jsonl", "metrics.jsonl"
BATCHES, REPORT, ROLLOUTS = "batches.jsonl", "report.html", "rollouts"


class RunFolder:
    def __init__(self, output_dir: str | Path, name: str) -> None:
        self.path = Path(output_dir).expanduser() / (re.sub(r"[^\w.-]+", "-", name).strip(".-") or "run")
        self._lock: IO[str] | None = None

    def take(self) -> None:
        """Makes the folder, and holds it until `release` or the end of the process.

        Raises:
            TrainerError: another process trains here, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("w")
        except OSError as error:
            raise TrainerError(
                f"{self.path} cannot be written: {error.strerror}", field="output_dir", stage="init"
            ) from error
        try:
            _lock_file(lock)
        except OSError as error:
            lock.close()
            raise TrainerError(
                f"another process trains in {self.path}",
                field="output_dir",
                hint="wait for it, or give this run another name",
                stage="init",
            ) from error
        self._lock = lock

    @property
    def is_held(self) -> bool:
        return self._lock is not None

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where no run was here.

        Raises:
            TrainerError: it cannot be read: a silent restart would cost a training run.
        """
        file = self.path / RUN
        if not file.exists():
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("run_id"), str):
                return found
        except (OSError, ValueError):
            pass
        raise TrainerError(
            f"{file} is damaged", stage="init", hint="move it away to begin anew, or set model.path to a checkpoint"
        )

    def write(self, **facts: Any) -> None:
        """
        Raises:
            TrainerError: the disk does not take it: nobody could go on from what is not written down. What was written
                before is left as it was.
        """
        file = self.path / RUN
        beside = file.with_suffix(".json~")
        try:
            with beside.open("w", encoding="utf-8") as out:
                json.dump(facts, out, ensure_ascii=False)
                out.flush()
                os.fsync(out.fileno())
            os.replace(beside, file)
        except OSError as error:
            raise TrainerError(f"{file} cannot be written: {error.strerror}", field="output_dir", stage="checkpoint",
                               hint="make room there, and start again: it goes on from the last checkpoint "
                               "with auto_resume") from error  # fmt: skip

    def put_away(self) -> None:
        """Moves what an earlier run left here out of the way; attempts that never began are no run."""
        left = [self.path / name for name in (RUN, EVENTS, METRICS, BATCHES, REPORT, ROLLOUTS)]
        events = self.path / EVENTS
        if not any(file.exists() for file in left) or (events.exists() and not _has_begun(events)):
            return
        number = 1
        while (self.path / "earlier" / str(number)).exists():
            number += 1
        away = self.path / "earlier" / str(number)
        away.mkdir(parents=True)
        for file in left:
            if file.exists():
                os.replace(file, away / file.name)


def _has_begun(events: Path) -> bool:
    return any(event.get("type") == "started" for event in read_events(events))


def _lock_file(file: IO[str]) -> None:
    """Until the file is closed, by whatever end of this process. Not on systems without `fcntl`."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
