"""Operations as a timeline: what waited and what ran, in microseconds, and nothing that JSON cannot say."""

import json

from farstep_infra.gateway.timeline import timeline
from farstep_proto.v1 import training_pb2


def operation(**fields):
    given = {
        "operation_id": "run:1",
        "verb": "forward_backward",
        "submitted_at": 100.0,
        "queued_s": 0.25,
        "total_s": 1.0,
    }
    return training_pb2.OperationTrace(**{**given, **fields})


def slices(traces, *, left_out=0):
    content = json.loads(timeline("session-1", traces, left_out=left_out))
    return content, [each for each in content["traceEvents"] if each["ph"] == "X"]


def test_an_operation_waits_and_then_runs():
    content, (waited, ran) = slices({"run": [operation(phases_s={"forward": 0.5}, num_tokens=7)]}, left_out=2)
    assert (waited["ts"], waited["dur"]) == (100_000_000, 250_000)
    assert (ran["ts"], ran["dur"]) == (100_250_000, 750_000)
    assert ran["args"] == {"operation": "run:1", "failed": False, "num_tokens": 7, "forward_s": 0.5}
    assert (waited["pid"], waited["tid"] != ran["tid"]) == (ran["pid"], True)
    assert content["otherData"] == {"session_id": "session-1", "runs_without_a_trace": 2}


def test_each_run_is_a_process_with_its_name():
    content, found = slices({"a": [operation()], "b": [operation()]})
    names = {each["pid"]: each["args"]["name"] for each in content["traceEvents"] if each["name"] == "process_name"}
    assert sorted(names.values()) == ["a", "b"]
    assert [names[each["pid"]] for each in found] == ["a", "a", "b", "b"]


def test_an_operation_that_ended_while_it_waited_ran_for_no_time():
    _, (_, ran) = slices({"run": [operation(queued_s=2.0, total_s=1.0)]})
    assert ran["dur"] == 0
