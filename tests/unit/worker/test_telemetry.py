"""What can be seen of operations that ran: traces, metrics, log lines, spans."""

import json
import logging

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from farstep_proto.v1 import training_pb2 as pb
from farstep_worker.spans import OtelSpans
from farstep_worker.telemetry import KEPT, Telemetry, seen_trace
from tests.unit.worker.wire import ADAM, PROTO


def trace_of(seq=1, **changes):
    fields = {"operation_id": f"run:{seq}", "verb": "forward", "queued_s": 0.5, "phases_s": {"forward": 2.0}}
    return pb.OperationTrace(**{**fields, "total_s": 3.0, "submitted_at": 100.0, "num_tokens": 7, **changes})


@pytest.fixture
def telemetry():
    return Telemetry(gauges=lambda: {"farstep_runs": 3})


def test_metrics_add_up(telemetry):
    for seq in (1, 2):
        telemetry.record("run", trace_of(seq))
    telemetry.record("run", trace_of(3, failed=True))
    telemetry.count("forward", "cancelled")
    lines = telemetry.metrics().decode().splitlines()
    assert 'farstep_operations_total{outcome="succeeded",verb="forward"} 2.0' in lines
    assert 'farstep_operations_total{outcome="failed",verb="forward"} 1.0' in lines
    assert 'farstep_operations_total{outcome="cancelled",verb="forward"} 1.0' in lines
    assert 'farstep_tokens_total{verb="forward"} 14.0' in lines
    assert 'farstep_phase_seconds_total{phase="forward"} 6.0' in lines
    assert 'farstep_phase_seconds_total{phase="queued"} 1.5' in lines
    assert "farstep_runs 3.0" in lines


def test_the_last_traces_are_kept_by_run(telemetry):
    for seq in range(KEPT + 5):
        telemetry.record("run", trace_of(seq))
    assert [trace.operation_id for trace in telemetry.last("run", 2)] == [f"run:{KEPT + 3}", f"run:{KEPT + 4}"]
    assert len(telemetry.last("run", 10**6)) == KEPT
    assert telemetry.last("other", 5) == []


def test_a_log_line_is_one_json_object(telemetry, caplog):
    with caplog.at_level(logging.INFO, logger="farstep_worker.operation"):
        telemetry.record("run", trace_of(failed=True))
    assert json.loads(caplog.messages[-1]) == {
        "operation": "run:1", "verb": "forward", "outcome": "failed", "tokens": 7,
        "total_ms": 3000.0, "queued_ms": 500.0, "forward_ms": 2000.0,
    }  # fmt: skip


def test_spans():
    exporter = InMemorySpanExporter()
    spans = OtelSpans(exporter)
    telemetry = Telemetry(gauges=dict, spans=spans)
    telemetry.record("run", trace_of(1))
    telemetry.record("run", trace_of(2, failed=True))
    spans.close()
    good, bad = exporter.get_finished_spans()
    assert (good.name, good.attributes["farstep.operation_id"], good.attributes["farstep.forward_s"]) == (
        "forward", "run:1", 2.0,
    )  # fmt: skip
    assert good.end_time - good.start_time == 3 * 10**9
    assert (good.status.status_code, bad.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)


async def test_a_trainer_traces_what_it_runs(trainer, request_of):
    await trainer.submit("forward_backward", request_of(), 1)
    await trainer.submit("optim_step", ADAM, 2)
    await trainer.submit("optim_step", ADAM, 3)  # fails: there is no gradient
    await trainer.outcome("run:3")
    response = await trainer.http.get("/v1/runs/run/trace", headers=PROTO)
    passed, stepped, failed = pb.TraceResponse.FromString(response.content).operations
    assert [trace.verb for trace in (passed, stepped, failed)] == ["forward_backward", "optim_step", "optim_step"]
    assert set(passed.phases_s) == {"decode", "forward", "backward", "encode"}
    assert set(stepped.phases_s) == {"decode", "optimizer", "encode"}
    assert [trace.failed for trace in (passed, stepped, failed)] == [False, False, True]
    assert passed.num_tokens > 0
    for trace in (passed, stepped, failed):
        on_the_torch_thread_s = sum(
            seconds for phase, seconds in trace.phases_s.items() if phase not in ("decode", "encode")
        )
        assert on_the_torch_thread_s <= trace.computed_s
        assert 0 < trace.computed_s <= trace.total_s - trace.queued_s
    last = await trainer.http.get("/v1/runs/run/trace", headers=PROTO, params={"last": 1})
    assert pb.TraceResponse.FromString(last.content).operations == [failed]
    assert (await trainer.http.get("/v1/runs/none/trace")).status_code == 404
    assert (await trainer.http.get("/v1/runs/run/trace", params={"last": "x"})).status_code == 400


async def test_a_trainer_counts_what_it_ran_and_what_it_did_not(trainer, request_of):
    await trainer.submit("forward", request_of(), 2)  # waits for the first
    await trainer.http.post("/v1/operations/run:2/cancel")
    await trainer.submit("forward", request_of(), 1)
    await trainer.outcome("run:1")
    text = (await trainer.http.get("/metrics")).text
    assert 'farstep_operations_total{outcome="succeeded",verb="forward"} 1.0' in text
    assert 'farstep_operations_total{outcome="cancelled",verb="forward"} 1.0' in text
    assert "farstep_runs 1.0" in text
    assert "farstep_queued_operations 0.0" in text
    assert (await trainer.http.get("/metrics", headers={"authorization": ""})).status_code == 401


def test_a_trace_names_only_what_its_reader_may_know_of():
    trace = pb.OperationTrace(operation_id="a:1", fused_with=["b:1", "c:2"], num_tokens=3)
    assert seen_trace(trace, lambda wanted: True) is trace
    seen = seen_trace(trace, lambda wanted: wanted.startswith("b"))
    assert list(seen.fused_with) == ["b:1"]
    assert (seen.operation_id, seen.num_tokens) == ("a:1", 3)
    assert len(trace.fused_with) == 2
