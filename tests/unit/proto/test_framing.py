"""Frames come out as they went in, however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farstep_proto.framing import HEARTBEAT, MAX_FRAME_BYTES, Unframer, framed
from farstep_proto.v1 import sampling_pb2 as pb


@given(st.lists(st.integers(1, 2**60), max_size=8), st.integers(1, 20))
def test_messages_survive_any_cut(versions: list[int], size: int) -> None:
    messages = [pb.SampleBegin(policy_version=version) for version in versions]
    data = HEARTBEAT + b"".join(framed(message) + HEARTBEAT for message in messages)
    unframer = Unframer()
    found = [each for at in range(0, len(data), size) for each in unframer.push(data[at : at + size])]
    assert [pb.SampleBegin.FromString(each) for each in found] == messages


def test_a_length_that_no_message_has() -> None:
    with pytest.raises(ValueError, match="frame"):
        list(Unframer().push((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))
