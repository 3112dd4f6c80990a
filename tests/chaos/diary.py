"""What a client process knows for certain: one JSON line an event, on the disk before the next thing is done.

The process that comes after a killed one goes on from it, and the verdict is given on it. Invariant: a line is whole
or was never written; the half line of a killed writer is passed over.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


class Diary:
    """Writes, and says every line on standard output as well, for whoever watches."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(self._descriptor, b"\n")  # what a killed process left half written ends here

    def write(self, what: str, **facts: Any) -> None:
        line = json.dumps({"what": what, **facts}).encode() + b"\n"
        os.write(self._descriptor, line)
        os.fsync(self._descriptor)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


@dataclass(slots=True)
class Known:
    """What a diary adds up to. `seqs[index]` are the operations that a call became, oldest first."""

    run_id: str = ""
    intended: int = -1  # the last call that was begun
    seqs: dict[int, list[int]] = field(default_factory=dict)
    results: dict[int, Event] = field(default_factory=dict)
    samplers: dict[int, str] = field(default_factory=dict)  # pickles, in hex
    samples: dict[tuple[int, int], Event] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)  # seqs that are no call's
    num_refused: int = 0
    end: Event | None = None
    errors: list[str] = field(default_factory=list)

    @property
    def last_seq(self) -> int:
        return max((*self.skipped, *(seq for seqs in self.seqs.values() for seq in seqs)), default=0)


def read(path: Path) -> Known:
    known = Known()
    for event in _events(path):
        if "index" in event:
            _add_of_call(known, event, event["index"])
        else:
            _add(known, event)
    return known


def _add(known: Known, event: Event) -> None:
    match event["what"]:
        case "run":
            known.run_id = event["run_id"]
        case "skipped":
            known.skipped.append(event["seq"])
        case "end":
            known.end = event
        case "error":
            known.errors.append(event["error"])


def _add_of_call(known: Known, event: Event, index: int) -> None:
    match event["what"]:
        case "intent":
            known.intended = index
        case "accepted":
            known.seqs.setdefault(index, []).append(event["seq"])
        case "result":
            known.results[index] = event["result"]
        case "sampler":
            known.samplers[index] = event["pickle"]
        case "sample":
            known.samples[index, event["number"]] = event["result"]
        case "refused":
            known.num_refused += 1


def _events(path: Path) -> Iterator[Event]:
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue
