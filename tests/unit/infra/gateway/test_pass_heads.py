"""Whose a pass is that is too large to be read, and what in it is too large."""

import pytest

from farstep_infra.gateway.pass_heads import PassHead, read_head
from farstep_proto.v1 import tinker_pb2

HEAD = 200


def encoded(*sizes, model_id="s:train:0", seq_id=300):
    data = [tinker_pb2.Datum(model_input=[{"encoded_text": {"tokens": bytes(size)}}]) for size in sizes]
    message = tinker_pb2.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, data=data, loss_fn="ppo")
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize(("sizes", "index"), [((5000,), 0), ((10, 10, 5000, 10), 2)])
def test_the_datum_that_is_too_large_is_named(sizes, index):
    head = read_head(encoded(*sizes)[:HEAD])
    assert (head.model_id, head.seq_id, head.index) == ("s:train:0", 300, index)
    assert 5000 < head.datum_bytes < 5020
    refusal = head.refusal(4000)
    assert (refusal.field, refusal.status) == (f"data[{index}]", 413)
    assert f"takes {head.datum_bytes} bytes" in refusal.message
    assert "at most 4000" in refusal.message


def test_of_many_that_are_small_none_is():
    head = read_head(encoded(*[30] * 1000)[:HEAD])
    assert head.refusal(4000).field == "data"


@pytest.mark.parametrize("data", [b"", b"\xff" * 50, encoded(5000, model_id=""), encoded(5000, seq_id=0)])
def test_a_beginning_without_a_number_is_nobodys(data):
    assert read_head(data[:HEAD]) is None


def test_a_name_that_is_no_text_is_nobodys():
    assert read_head(b"\x0a\x02\xff\xfe\x10\x01\x1a\xff\x7f") is None


def test_a_beginning_is_no_larger_than_it_is():
    assert read_head(encoded(10)) == PassHead("s:train:0", 300, 0, 0)
