"""What may be larger than a request usually is: tensors, and nothing that grows when it is decoded."""

import pytest

from farstep_proto.errors import PayloadTooLarge
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_serving.large_messages import MAX_FIELDS, check_large

USUAL = 1000


def check(body):
    check_large(body, pb.ForwardRequest, usual_bytes=USUAL)


def request(*, tokens=b"", **inputs):
    tensors = {key: common_pb2.Tensor(dtype=1, shape=[9], data=data) for key, data in inputs.items()}
    chunks = [common_pb2.Chunk(encoded_text=common_pb2.EncodedTextChunk(tokens=tokens))]
    datum = common_pb2.Datum(model_input=common_pb2.ModelInput(chunks=chunks), loss_fn_inputs=tensors)
    return pb.ForwardRequest(loss_fn="cross_entropy", data=[datum])


def of(datum):
    return pb.ForwardRequest(data=[datum]).SerializeToString()


def test_large_tensors_pass():
    check(request(tokens=bytes(40_000), target_tokens=bytes(100_000), weights=bytes(50_000)).SerializeToString())
    pair = request(tokens=bytes(40_000))
    pair.MergeFrom(request(weights=bytes(40_000)))
    check(pair.SerializeToString())


def test_what_is_not_large_is_not_looked_at():
    check(b"\xff" * USUAL)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x0a\x00" * (MAX_FIELDS + 1), id="empty data"),
        pytest.param(b"\x0a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000, id="empty chunks in one datum"),
        pytest.param(of({"model_input": {"chunks": [{"encoded_text": {"ids": [1] * 30_000}}]}}), id="numbers"),
        pytest.param(of({"loss_fn_inputs": {str(i): common_pb2.Tensor() for i in range(9000)}}), id="inputs"),
        pytest.param(b"\x78\x01" * (MAX_FIELDS + 1), id="fields that nobody knows"),
        pytest.param(request(tokens=bytes(40_000)).SerializeToString()[:-1], id="cut off"),
        pytest.param(bytes(USUAL + 1), id="zeros"),
        pytest.param(b"\xff" * 5000, id="no message"),
        pytest.param(b"\x0b" * 5000, id="groups"),
    ],
)  # fmt: skip
def test_what_grows_when_it_is_decoded_does_not(body):
    assert len(body) > USUAL
    with pytest.raises(PayloadTooLarge, match="not by tensors alone"):
        check(body)
