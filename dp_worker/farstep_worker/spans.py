"""Operations as OpenTelemetry spans, for those who set OpenTelemetry's own environment variables.

The SDK of OpenTelemetry reads them (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, …) and exports in a
thread of its own; this module turns a trace into a span and knows nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from farstep_proto.v1 import training_pb2 as pb

_NS = 1_000_000_000


class OtelSpans:
    """Args: `exporter` is OTLP over HTTP where none is given."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "farstep-dp-worker"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("farstep_worker")

    def write(self, trace: pb.OperationTrace) -> None:
        """One span from arrival to outcome; its start in the queue and its phases are attributes."""
        started_ns = int(trace.submitted_at * _NS)
        span = self._tracer.start_span(
            trace.verb, kind=SpanKind.SERVER, start_time=started_ns, attributes=_attributes(trace)
        )
        if trace.failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(started_ns + int(trace.total_s * _NS))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _attributes(trace: pb.OperationTrace) -> Mapping[str, str | int | float]:
    return {
        "farstep.operation_id": trace.operation_id,
        "farstep.tokens": trace.num_tokens,
        "farstep.queued_s": trace.queued_s,
        **{f"farstep.{phase}_s": seconds for phase, seconds in trace.phases_s.items()},
    }
