"""The tensor codec: what goes in comes out, and what is malformed is refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import (
    ids_from_bytes,
    ids_to_bytes,
    model_input_ids,
    model_input_to_proto,
    tensor_from_proto,
    tensor_to_proto,
)
from farstep_proto.v1 import common_pb2 as pb


@given(
    hnp.arrays(
        dtype=st.sampled_from([np.dtype("float32"), np.dtype("int64")]),
        shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    )
)
def test_round_trip(array):
    decoded = tensor_from_proto(tensor_to_proto(array))
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


def test_wider_types_become_the_two_of_the_wire():
    assert tensor_from_proto(tensor_to_proto(np.array([1.5], dtype=np.float64))).dtype == np.float32
    assert tensor_from_proto(tensor_to_proto(np.array([True, False]))).tolist() == [1, 0]


def test_non_contiguous_input():
    array = np.arange(12, dtype=np.int64).reshape(3, 4).T
    np.testing.assert_array_equal(tensor_from_proto(tensor_to_proto(array)), array)


def test_values_written_by_hand():
    message = pb.Tensor(dtype=pb.DTYPE_INT64, values=[1, -100])
    assert tensor_from_proto(message).tolist() == [1, -100]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Tensor(data=b"1234"), "x.dtype"),
        (pb.Tensor(dtype=pb.DTYPE_FLOAT32, data=b"12345"), "x.data"),
        (pb.Tensor(dtype=pb.DTYPE_FLOAT32, data=b"1234", shape=[2]), "x.shape"),
        (pb.Tensor(dtype=pb.DTYPE_FLOAT32, data=b"12345678", shape=[-1, -2]), "x.shape"),
        (pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[2**62, 4]), "x.shape"),
    ],
)
def test_malformed_tensors_name_their_field(message, field):
    with pytest.raises(InvalidInput) as caught:
        tensor_from_proto(message, field="x")
    assert caught.value.field == field


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_ids_round_trip(ids):
    assert ids_from_bytes(ids_to_bytes(ids)).tolist() == ids
    assert model_input_ids(model_input_to_proto(ids)).tolist() == ids


def test_ids_of_a_broken_length():
    with pytest.raises(InvalidInput, match="int32"):
        ids_from_bytes(b"123")


def test_chunks_are_joined_and_images_refused():
    text = pb.Chunk(encoded_text=pb.EncodedTextChunk(ids=[1, 2]))
    assert model_input_ids(pb.ModelInput(chunks=[text, text])).tolist() == [1, 2, 1, 2]
    with pytest.raises(InvalidInput) as caught:
        model_input_ids(pb.ModelInput(chunks=[text, pb.Chunk(image=pb.ImageChunk())]))
    assert caught.value.field == "model_input.chunks[1]"
