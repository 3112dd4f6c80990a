"""A stream that is heard several times, cut differently and broken off anywhere, is delivered once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farstep_proto.resumption import Delivered, Differs
from farstep_proto.v1 import sampling_pb2 as pb

WHOLE = {0: [5, 6, 7, 8, 9], 1: [1, 2, 3]}
BEGIN = pb.SampleEvent(begin=pb.SampleBegin(policy_version=4))


def delta(index: int, tokens: list[int], *, stop: bool = False, versions: list[int] | None = None) -> pb.SampleEvent:
    topk = pb.TopkLogprobs(
        k=2,
        token_ids=np.repeat(np.array(tokens, "<i4"), 2).tobytes(),
        logprobs=np.zeros(2 * len(tokens), "<f4").tobytes(),
    )
    message = pb.SampleDelta(
        index=index,
        tokens=np.array(tokens, "<i4").tobytes(),
        logprobs=(-np.array(tokens, "<f4")).tobytes(),
        policy_versions=np.array(versions or [], "<i8").tobytes(),
        topk_logprobs=topk,
        stop_reason="stop" if stop else "",
    )
    return pb.SampleEvent(delta=message)


def hearing(size: int, *, is_interleaved: bool) -> list[pb.SampleEvent]:
    by_index = {
        index: [
            delta(index, tokens[at : at + size], stop=at + size >= len(tokens)) for at in range(0, len(tokens), size)
        ]
        for index, tokens in WHOLE.items()
    }
    events = [event for events in by_index.values() for event in events]
    if is_interleaved:
        events.sort(key=lambda event: event.delta.stop_reason == "stop")
    return [BEGIN, *events]


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 9)), max_size=4), st.integers(1, 6))
def test_what_was_delivered_is_left_out(hearings: list[tuple[int, bool, int]], last: int) -> None:
    delivered = Delivered()
    got: list[pb.SampleEvent] = []
    attempts = [hearing(size, is_interleaved=mixed)[:cut] for size, mixed, cut in hearings]
    for events in [*attempts, hearing(last, is_interleaved=False)]:
        delivered.start_again()
        got += [new for event in events if (new := delivered.take(event)) is not None]
    assert [event.WhichOneof("event") for event in got].count("begin") == 1
    for index, tokens in WHOLE.items():
        deltas = [event.delta for event in got if event.HasField("delta") and event.delta.index == index]
        assert np.frombuffer(b"".join(each.tokens for each in deltas), "<i4").tolist() == tokens
        assert np.frombuffer(b"".join(each.logprobs for each in deltas), "<f4").tolist() == [-t for t in tokens]
        candidates = b"".join(each.topk_logprobs.token_ids for each in deltas)
        assert np.frombuffer(candidates, "<i4").tolist() == [token for token in tokens for _ in range(2)]
        assert [each.stop_reason for each in deltas if each.stop_reason] == ["stop"]
        assert deltas[-1].stop_reason


@pytest.mark.parametrize(
    "other",
    [
        [pb.SampleEvent(begin=pb.SampleBegin(policy_version=5))],
        [BEGIN, delta(0, [5, 7])],
        [BEGIN, delta(0, [5, 6], versions=[4, 5])],
        [BEGIN, delta(1, [1, 2, 3, 4])],
    ],
)
def test_another_stream_is_told_apart(other: list[pb.SampleEvent]) -> None:
    delivered = Delivered()
    for event in [BEGIN, delta(0, [5, 6]), delta(1, [1, 2, 3], stop=True)]:
        delivered.take(event)
    delivered.start_again()
    *same, last = other
    assert [delivered.take(event) for event in same] == [None] * len(same)
    with pytest.raises(Differs):
        delivered.take(last)
