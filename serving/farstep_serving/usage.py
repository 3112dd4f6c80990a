"""What a server has done for whom since it began: counters by project and run, to be read and added up elsewhere.

It charges nobody and keeps nothing beyond the process. A row only grows while it is there; one that was dropped and
begins anew counts from zero.

Invariant: memory is bounded, and whoever reads often enough misses nothing: a row leaves when two operators' readings
have told all of it, or else what was not told goes to its project's row without a run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from farstep_proto import paths
from farstep_proto.v1 import control_pb2
from farstep_serving.descriptions import describe
from farstep_serving.keys import Caller, caller_of
from farstep_serving.messages import respond

_MAX_ROWS = 4096
_LAST_READINGS = 2
_AMOUNTS = [each.name for each in control_pb2.Usage.DESCRIPTOR.fields if each.name not in ("project", "run_id")]


@dataclass(slots=True)
class _Row:
    """`told` is what operators have read of it; `readings_left` counts down once its run has ended."""

    usage: control_pb2.Usage
    told: control_pb2.Usage = field(default_factory=control_pb2.Usage)
    readings_left: int | None = None


class UsageCounters:
    """Of one server; any thread may call.

    Args:
        max_rows: beyond so many, the rows of runs that were used longest ago leave.
    """

    def __init__(self, *, max_rows: int = _MAX_ROWS) -> None:
        self._lock = threading.Lock()
        self._max_rows = max_rows
        self._rows: OrderedDict[tuple[str, str], _Row] = OrderedDict()  # of runs, least recently used first
        self._others: dict[str, _Row] = {}  # by project, what is of no run

    def add(self, used: control_pb2.Usage) -> None:
        """Counts what was used by its project and run."""
        with self._lock:
            row = self._row(used.project, used.run_id)
            _add(row.usage, used)
            while len(self._rows) > self._max_rows:
                self._drop(next(iter(self._rows)))

    def end(self, project: str, run_id: str) -> None:
        """The run is gone; its row goes when it was read often enough."""
        with self._lock:
            if (row := self._rows.get((project, run_id))) is not None:
                row.readings_left = _LAST_READINGS

    def read(self, caller: Caller) -> list[control_pb2.Usage]:
        """The rows that a caller may see, of runs and of none."""
        with self._lock:
            rows = [row for row in [*self._rows.values(), *self._others.values()] if caller.may_see(row.usage.project)]
            told = [_copy(row.usage) for row in rows]
            if caller.is_operator:
                self._note_reading(rows)
        return told

    def _note_reading(self, rows: list[_Row]) -> None:
        for row in rows:
            row.told = _copy(row.usage)
            if row.readings_left is not None:
                row.readings_left -= 1
        for key in [key for key, row in self._rows.items() if row.readings_left == 0]:
            del self._rows[key]

    def _row(self, project: str, run_id: str) -> _Row:
        fresh = _Row(control_pb2.Usage(project=project, run_id=run_id))
        if not run_id:
            return self._others.setdefault(project, fresh)
        row = self._rows.setdefault((project, run_id), fresh)
        self._rows.move_to_end((project, run_id))
        return row

    def _drop(self, key: tuple[str, str]) -> None:
        """Lets a row go; what nobody has read of it stays in its project's sum."""
        row = self._rows.pop(key)
        _add(self._row(key[0], "").usage, row.usage)
        _add(self._row(key[0], "").usage, row.told, sign=-1)


def usage_route(counters: UsageCounters, *, instance_id: str) -> Route:
    @describe("Tell what was used", gives=control_pb2.ServerUsage)
    async def usage(request: Request) -> Response:
        rows = counters.read(caller_of(request))
        return respond(request, control_pb2.ServerUsage(instance_id=instance_id, usage=rows))

    return Route(paths.USAGE, usage, methods=["GET"])


def _add(into: control_pb2.Usage, other: control_pb2.Usage, *, sign: int = 1) -> None:
    for name in _AMOUNTS:
        setattr(into, name, getattr(into, name) + sign * getattr(other, name))


def _copy(usage: control_pb2.Usage) -> control_pb2.Usage:
    copied = control_pb2.Usage()
    copied.CopyFrom(usage)
    return copied
