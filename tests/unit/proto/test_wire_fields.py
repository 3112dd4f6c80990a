"""Encoded messages, looked at field by field."""

import pytest

from farstep_proto.v1 import common_pb2, training_pb2
from farstep_proto.wire_fields import wire_fields


def test_fields_come_as_the_encoder_wrote_them():
    message = training_pb2.ServerInfo(role="trainer", max_seq_len=300, max_request_bytes=2**40, idle_s=1.5)
    found = {field.number: field for field in wire_fields(memoryview(message.SerializeToString()))}
    assert set(found) == {1, 4, 6, 140}
    assert bytes(found[1].content) == b"trainer"
    assert (found[4].value, found[6].value) == (300, 2**40)
    assert found[140].content is None
    assert not any(field.is_cut_off for field in found.values())


def test_a_field_that_is_cut_off_says_how_long_it_claims_to_be():
    whole = common_pb2.Tensor(dtype=1, data=bytes(1000)).SerializeToString()
    *_, last = wire_fields(memoryview(whole[:50]))
    assert (last.number, last.num_bytes, last.is_cut_off) == (3, 1000, True)
    assert len(last.content) < 50


@pytest.mark.parametrize("data", [b"\x08", b"\x08\x80", b"\x80" * 11, b"\x0a\xff", b"\x0b\x0c", b"\x0e"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError, match=r"ends early|no number|wire type"):
        list(wire_fields(memoryview(data)))
