"""Events: what a training run says about itself, as numbered JSON objects; the same for a local run and a remote job.

    {"seq": 7, "type": "log", "time": "2026-01-31T12:00:00.000Z", "run": "run_…", "step": 3, "loss": 1.25, …}

started · log · checkpoint · eval · rollout · completed · failed · cancelled. They report and change nothing; what
changes the computation is a hook. A number that JSON cannot hold is null, and named in `not_finite`.

Invariant: numbers ascend without a gap, across resumed processes of one log, and a trainer says exactly one of the
last three, after everything else.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("farstep")

Event = dict[str, Any]
TYPES = ("started", "log", "checkpoint", "eval", "rollout", "completed", "failed", "cancelled")
TERMINAL = frozenset({"completed", "failed", "cancelled"})


class EventSink(Protocol):
    """Takes events in their order, one at a time."""

    def __call__(self, event: Event, /) -> object: ...


class EventLog:
    """Numbers events and hands them to every sink; a sink that fails is said once and does not stop the run.

    Args:
        last_seq: of the event before the first, where a log goes on.
        clock: gives the time of an event.
    """

    def __init__(
        self,
        sinks: Iterable[EventSink] = (),
        *,
        run: str = "",
        last_seq: int = 0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.run = run
        self._sinks = list(sinks)
        self._seq = last_seq
        self._clock = clock
        self._lock = threading.Lock()
        self._has_ended = False
        self._complained: set[int] = set()

    @property
    def last_seq(self) -> int:
        return self._seq

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    def emit(self, kind: str, /, **data: Any) -> Event:
        """The event, after every sink has had it."""
        assert kind in TYPES, kind
        with self._lock:
            assert not self._has_ended, f"{kind} after the end"
            self._has_ended = kind in TERMINAL
            self._seq += 1
            time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            event = {"seq": self._seq, "type": kind, "time": time, "run": self.run, **plain(data)}
            for sink in self._sinks:
                self._hand(sink, event)
        return event

    def _hand(self, sink: EventSink, event: Event) -> None:
        try:
            sink(event)
        except Exception as error:
            if id(sink) not in self._complained:
                log.warning("an event sink fails, training goes on: %s: %s", type(error).__name__, error)
            self._complained.add(id(sink))


class EventFile:
    """A sink: one JSON object a line, on the disk when the call returns. Half a line of a killed process is removed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last_seq = 0
        self._repair()

    def __call__(self, event: Event) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            if event["type"] != "log":
                os.fsync(file.fileno())

    def _repair(self) -> None:
        if not self.path.exists():
            return
        kept = self.path.read_bytes()
        whole = kept[: kept.rfind(b"\n") + 1]
        if len(whole) < len(kept):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for line in reversed(whole.splitlines()):
            try:
                self.last_seq = int(json.loads(line)["seq"])
            except (ValueError, KeyError, TypeError):
                continue
            return


def read_events(path: str | Path) -> list[Event]:
    """The events of a file, oldest first; lines that are none are left out."""
    events = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "seq" in event:
            events.append(event)
    return events


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold; where a number is none, null and its name in `not_finite`."""
    lost: list[str] = []
    result = {str(key): _plain(value, str(key), lost) for key, value in data.items()}
    return result | ({"not_finite": lost} if lost else {})


def _plain(value: Any, place: str, lost: list[str]) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                lost.append(place)
                return None
            return value
        case Mapping():
            return {str(key): _plain(item, f"{place}.{key}", lost) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item, f"{place}[{index}]", lost) for index, item in enumerate(value)]
        case _ if hasattr(value, "tolist"):
            return _plain(value.tolist(), place, lost)
        case _:
            return str(value)
