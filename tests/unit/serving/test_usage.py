"""Counters of what was used: by project and run, read by whom they concern, and never more than there is room for."""

from farstep_proto.v1 import control_pb2
from farstep_serving.keys import OPERATOR, Caller
from farstep_serving.usage import UsageCounters

ANNE = Caller("key", "anne")


def used(project, run_id="", *, tokens=1, seconds=0.5):
    return control_pb2.Usage(project=project, run_id=run_id, tokens_trained=tokens, trainer_seconds=seconds)


def rows(counters, caller=OPERATOR):
    return {(row.project, row.run_id): row.tokens_trained for row in counters.read(caller)}


def test_rows_add_up_and_show_to_whom_they_concern():
    counters = UsageCounters()
    for _ in range(3):
        counters.add(used("anne", "a"))
    counters.add(used("anne"))
    counters.add(used("bob", "b", tokens=5))
    counters.add(used(""))
    assert rows(counters) == {("anne", "a"): 3, ("anne", ""): 1, ("bob", "b"): 5, ("", ""): 1}
    assert rows(counters, ANNE) == {("anne", "a"): 3, ("anne", ""): 1}
    assert counters.read(ANNE)[0].trainer_seconds == 1.5


def test_a_run_that_ended_is_told_of_twice():
    counters = UsageCounters()
    counters.add(used("anne", "a"))
    counters.end("anne", "a")
    counters.end("anne", "unknown")
    for _ in range(3):
        assert rows(counters, ANNE) == {("anne", "a"): 1}  # it is operators who add up
    assert rows(counters) == {("anne", "a"): 1}
    assert rows(counters) == {("anne", "a"): 1}
    assert rows(counters) == {}


def test_what_was_not_told_is_not_lost_and_what_was_is_not_told_again():
    counters = UsageCounters(max_rows=2)
    counters.add(used("anne", "a", tokens=10))
    assert rows(counters) == {("anne", "a"): 10}
    counters.add(used("anne", "a", tokens=5))
    counters.add(used("anne", "b"))
    counters.add(used("anne", "c"))
    assert rows(counters) == {("anne", "b"): 1, ("anne", "c"): 1, ("anne", ""): 5}
