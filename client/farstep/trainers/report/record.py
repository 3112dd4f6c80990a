"""`RunRecord`: a run as its folder tells it. Reads, and forgives what is missing or half written; shows nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from farstep.trainers.errors import TrainerError
from farstep.trainers.events import TERMINAL, Event, read_events
from farstep.trainers.run_folder import BATCHES, EVENTS

_NO_METRICS = frozenset({"seq", "type", "time", "run", "step", "total_steps", "num_batches", "not_finite"})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """
    Args:
        started: the last `started` event; a run that was gone on with has several.
        logs, evals: by step; of a step that was made again, the later one.
        end: how it ended; None where it goes on, or was killed.
        took_s: from each beginning to the last that was heard of it, without what lies between.
    """

    folder: Path
    started: Event
    logs: Mapping[int, Event]
    evals: Mapping[int, Event]
    rollouts: list[Event] = field(default_factory=list)
    checkpoints: list[Event] = field(default_factory=list)
    end: Event | None = None
    batches: list[dict[str, Any]] = field(default_factory=list)
    num_resumptions: int = 0
    began: str = ""
    took_s: float | None = None

    @property
    def state(self) -> str:
        return str(self.end["type"]) if self.end is not None else "unfinished"

    @property
    def steps(self) -> int:
        return max([0, *self.logs, *([int(self.end.get("step") or 0)] if self.end is not None else [])])

    def series(self) -> dict[str, list[tuple[int, float | None]]]:
        """Every metric by its name: (step, value), value None where it was no finite number."""
        found: dict[str, list[tuple[int, float | None]]] = {}
        for events in (self.logs, self.evals):
            for step, event in sorted(events.items()):
                lost = event.get("not_finite", ())
                for name, value in event.items():
                    is_number = isinstance(value, int | float) and not isinstance(value, bool)
                    if name not in _NO_METRICS and (is_number or name in lost):
                        found.setdefault(name, []).append((step, float(value) if is_number else None))
        return found


def read_run(folder: str | Path) -> RunRecord:
    """
    Raises:
        TrainerError: there is no run.
    """
    folder = Path(folder).expanduser()
    try:
        events = read_events(folder / EVENTS)
    except OSError as error:
        raise TrainerError(f"{folder} has no run: {error.strerror}: {EVENTS}", stage="report",
                           hint="the folder of one run, such as farstep-runs/NAME") from error  # fmt: skip
    started = [event for event in events if event.get("type") == "started"]
    if not started:
        raise TrainerError(f"{folder / EVENTS} tells of no run that began", stage="report")
    last = events[-1]
    return RunRecord(
        folder=folder,
        started=started[-1],
        logs=_by_step(events, "log"),
        evals=_by_step(events, "eval"),
        rollouts=[event for event in events if event.get("type") == "rollout"],
        checkpoints=_latest(event for event in events if event.get("type") == "checkpoint"),
        end=last if last.get("type") in TERMINAL else None,
        batches=_read_batches(folder / BATCHES),
        num_resumptions=len(started) - 1,
        began=str(started[0].get("time", "")),
        took_s=_took_s(events),
    )


def _took_s(events: Sequence[Event]) -> float | None:
    """None where the times cannot be read."""
    total, begun = 0.0, 0.0
    try:
        for event in events:
            now = datetime.fromisoformat(str(event.get("time"))).timestamp()
            if event.get("type") != "started":
                total += now - begun if begun else 0.0
            begun = now
    except ValueError:
        return None
    return total


def _by_step(events: Iterable[Event], kind: str) -> dict[int, Event]:
    return {int(event["step"]): event for event in events if event.get("type") == kind and "step" in event}


def _latest(events: Iterable[Event]) -> list[Event]:
    return list({(event.get("step"), event.get("kind")): event for event in events}.values())


def _read_batches(path: Path) -> list[dict[str, Any]]:
    """By step; half a line of a process that was killed is left out."""
    found: dict[int, dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            batch = json.loads(line)
            found[int(batch["step"])] = batch
        except (ValueError, KeyError, TypeError):
            continue
    return [found[step] for step in sorted(found)]
