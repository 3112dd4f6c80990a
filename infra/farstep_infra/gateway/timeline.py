"""The operations of runs as a timeline that Perfetto and Chrome show: Chrome's JSON trace format.

One process a run, with two tracks: what waited, and what ran. Phases have lengths but no places inside their operation,
so they are its arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from farstep_proto.v1 import training_pb2

Event: TypeAlias = Mapping[str, object]
_RAN, _WAITED = 1, 2
_TRACKS = {_RAN: "runs", _WAITED: "waits"}


def timeline(session_id: str, traces: Mapping[str, Iterable[training_pb2.OperationTrace]], *, left_out: int) -> bytes:
    """Args:
    traces: by run id, oldest first.
    left_out: of how many runs nothing is known any more.
    """
    events: list[Event] = []
    for number, (run_id, operations) in enumerate(traces.items(), start=1):
        events.append(_name("process_name", number, 0, run_id))
        events += [_name("thread_name", number, track, name) for track, name in _TRACKS.items()]
        for operation in operations:
            events += _events_of(operation, number)
    content = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"session_id": session_id, "runs_without_a_trace": left_out},
    }
    return json.dumps(content, allow_nan=False).encode()


def _events_of(operation: training_pb2.OperationTrace, process: int) -> list[Event]:
    begun_at = operation.submitted_at + operation.queued_s
    ran_s = max(0.0, operation.total_s - operation.queued_s)
    told: dict[str, object] = {
        "operation": operation.operation_id,
        "failed": operation.failed,
        "num_tokens": operation.num_tokens,
        **{f"{name}_s": value for name, value in sorted(operation.phases_s.items())},
    }
    waited = _slice(operation.verb, process, _WAITED, operation.submitted_at, operation.queued_s, {})
    return [waited, _slice(operation.verb, process, _RAN, begun_at, ran_s, told)]


def _slice(name: str, process: int, track: int, begun_at: float, length_s: float, told: Mapping[str, object]) -> Event:
    times = {"ts": round(begun_at * 1e6), "dur": round(length_s * 1e6)}
    return {"name": name, "ph": "X", "pid": process, "tid": track, **times, "args": told}


def _name(what: str, process: int, track: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": process, "tid": track, "args": {"name": name}}
