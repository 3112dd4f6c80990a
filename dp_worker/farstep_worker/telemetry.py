"""What an operator and a user can see of the operations that ran: metrics, traces, a log line each, spans.

It is told of each operation once, after its end, and changes nothing. Metrics are Prometheus's; a trace is
kept for the last `KEPT` operations of each run; spans go where OpenTelemetry's own environment variables say,
and only if its extra is installed and they are set.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from farstep_proto.v1 import training_pb2 as pb

KEPT = 1000

log = logging.getLogger("farstep_worker.operation")


class SpanWriter(Protocol):
    """Sends an operation's trace on as a span; `spans` has the one of OpenTelemetry, tests have theirs."""

    def write(self, trace: pb.OperationTrace) -> None: ...


class Telemetry:
    """Args: `gauges` tells the present value of each gauge, by name; read whenever metrics are asked for."""

    def __init__(self, *, gauges: Callable[[], dict[str, float]], spans: SpanWriter | None = None) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(gauges))
        self._operations = Counter(
            "farstep_operations", "Operations that ended.", ["verb", "outcome"], registry=self._registry
        )
        self._tokens = Counter(
            "farstep_tokens", "Tokens of operations that succeeded.", ["verb"], registry=self._registry
        )
        self._seconds = Counter(
            "farstep_phase_seconds", "Seconds by phase, waiting included.", ["phase"], registry=self._registry
        )
        self._traces: dict[str, deque[pb.OperationTrace]] = {}
        self._spans = spans

    def record(self, run_id: str, trace: pb.OperationTrace) -> None:
        """Takes in an operation that ran to its end, well or not."""
        self.count(trace.verb, "failed" if trace.failed else "succeeded")
        if not trace.failed:
            self._tokens.labels(trace.verb).inc(trace.num_tokens)
        for phase, seconds in (("queued", trace.queued_s), *trace.phases_s.items()):
            self._seconds.labels(phase).inc(seconds)
        self._traces.setdefault(run_id, deque(maxlen=KEPT)).append(trace)
        log.info("%s", _line(trace))
        if self._spans is not None:
            self._spans.write(trace)

    def count(self, verb: str, outcome: str) -> None:
        """Counts an operation that ended; one that never ran is counted and nothing more."""
        self._operations.labels(verb, outcome).inc()

    def last(self, run_id: str, count: int) -> list[pb.OperationTrace]:
        """The last `count` operations of a run that ran, oldest first."""
        traces = self._traces.get(run_id, ())
        return list(traces)[max(0, len(traces) - count) :]

    def forget(self, run_id: str) -> None:
        """Drops a run's traces."""
        self._traces.pop(run_id, None)

    def metrics(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)


def seen_trace(trace: pb.OperationTrace, knows: Callable[[str], bool]) -> pb.OperationTrace:
    """A trace for somebody who may not know of every operation that shared its batch."""
    seen = [wanted for wanted in trace.fused_with if knows(wanted)]
    if len(seen) == len(trace.fused_with):
        return trace
    copy = pb.OperationTrace()
    copy.CopyFrom(trace)
    copy.fused_with[:] = seen
    return copy


class _Gauges(Collector):
    def __init__(self, read: Callable[[], dict[str, float]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._read().items():
            yield GaugeMetricFamily(name, name.removeprefix("farstep_").replace("_", " ").capitalize() + ".", value)


def _line(trace: pb.OperationTrace) -> str:
    """One JSON object, times in milliseconds."""
    facts = {
        "operation": trace.operation_id,
        "verb": trace.verb,
        "outcome": "failed" if trace.failed else "succeeded",
        "tokens": trace.num_tokens,
        "total_ms": round(trace.total_s * 1000, 3),
        "queued_ms": round(trace.queued_s * 1000, 3),
        **{f"{phase}_ms": round(seconds * 1000, 3) for phase, seconds in sorted(trace.phases_s.items())},
    }
    return json.dumps(facts)
