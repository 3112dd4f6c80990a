"""What the real SDK encodes, in our words: the same tokens and numbers, and errors by the name of what is wrong."""

import numpy as np
import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tinker.proto import tinker_public_pb2
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest

from farstep_infra.gateway.data import to_forward_request
from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import model_input_ids, tensor_from_proto
from farstep_proto.v1 import common_pb2, tinker_pb2, training_pb2

# From the description of the wire: what the SDK's own encoder writes.
CROSS_ENTROPY = bytes.fromhex(
    "0a09533a747261696e3a3010011a540a0c0a0a0a08010000000200000012280a0d7461726765745f746f6b656e7312170a1002000000000000"
    "0003000000000000001802220102121a0a0777656967687473120f0a08000000000000803f1801220102220d63726f73735f656e74726f7079"
)
PPO = bytes.fromhex(
    "0a09533a747261696e3a3010011a740a0c0a0a0a080100000002000000121d0a0a616476616e7461676573120f0a08000000000000803f1801"
    "220102121b0a086c6f6770726f6273120f0a08000000000000c0bf180122010212280a0d7461726765745f746f6b656e7312170a1002000000"
    "0000000003000000000000001802220102220370706f2a1e0a13636c69705f686967685f7468726573686f6c6411333333333333f33f2a1d0a"
    "12636c69705f6c6f775f7468726573686f6c64119a9999999999e93f3a200a13636c69705f686967685f7468726573686f6c64120909333333"
    "333333f33f3a1f0a12636c69705f6c6f775f7468726573686f6c641209099a9999999999e93f"
)


def encoded(data, loss_fn="cross_entropy", config=None):
    """As the SDK sends it, read by our own messages."""
    body = ForwardBackwardInput(data=data, loss_fn=loss_fn, loss_fn_config=config)
    request = ForwardBackwardRequest(model_id="S:train:0", seq_id=1, forward_backward_input=body)
    return tinker_pb2.ForwardBackwardRequest.FromString(
        forward_backward_request_to_proto(request).SerializeToString(deterministic=True)
    )


def datum(tokens=(1, 2), **inputs):
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(list(tokens)), loss_fn_inputs=inputs)


def inputs_of(request, index=0):
    return {key: tensor_from_proto(tensor) for key, tensor in request.data[index].loss_fn_inputs.items()}


def refused(message):
    with pytest.raises(InvalidInput) as caught:
        to_forward_request(message)
    return caught.value


def of_tensor(**fields):
    """A message that is all right but for one tensor."""
    return tinker_pb2.ForwardBackwardRequest(
        loss_fn="cross_entropy", data=[{"loss_fn_inputs": {"weights": tinker_pb2.Tensor(**fields)}}]
    )


def test_the_golden_cross_entropy() -> None:
    request = to_forward_request(tinker_pb2.ForwardBackwardRequest.FromString(CROSS_ENTROPY))
    assert request.loss_fn == "cross_entropy"
    assert not request.loss_fn_config
    assert model_input_ids(request.data[0].model_input).tolist() == [1, 2]
    found = inputs_of(request)
    assert {key: (array.dtype, array.tolist()) for key, array in found.items()} == {
        "target_tokens": (np.int64, [2, 3]),
        "weights": (np.float32, [0.0, 1.0]),
    }


def test_the_golden_ppo() -> None:
    request = to_forward_request(tinker_pb2.ForwardBackwardRequest.FromString(PPO))
    assert dict(request.loss_fn_config) == {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert inputs_of(request)["logprobs"].tolist() == [0.0, -1.5]


@pytest.mark.parametrize("golden", [CROSS_ENTROPY, PPO])
def test_our_messages_write_the_goldens_bytes(golden: bytes) -> None:
    message = tinker_pb2.ForwardBackwardRequest.FromString(golden)
    assert message.SerializeToString(deterministic=True) == golden


def test_the_sdks_encoder_writes_the_golden() -> None:
    data = [datum((1, 2), target_tokens=[2, 3], weights=[0.0, 1.0])]
    assert encoded(data).SerializeToString(deterministic=True) == CROSS_ENTROPY


def test_the_second_map_of_settings_is_the_one_that_counts() -> None:
    message = tinker_pb2.ForwardBackwardRequest(
        loss_fn="ppo", loss_fn_config={"clip_low_threshold": 0.5}, loss_fn_config_v2={"beta": {"number": 2.0}}
    )
    assert dict(to_forward_request(message).loss_fn_config) == {"beta": 2.0}
    message.ClearField("loss_fn_config_v2")
    assert dict(to_forward_request(message).loss_fn_config) == {"clip_low_threshold": 0.5}


def test_a_setting_that_is_text_is_refused_by_name() -> None:
    message = encoded([datum(target_tokens=[2, 3])], "ppo", {"clip_low_threshold": "0.8"})
    assert refused(message).field == "loss_fn_config.clip_low_threshold"


ARRAYS = st.one_of(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=6), elements=st.floats(width=32, allow_nan=True)),
    hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, max_side=6)),
)


@given(tokens=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20), arrays=st.lists(ARRAYS, max_size=3))
def test_all_that_the_sdk_encodes_arrives_unchanged(tokens, arrays) -> None:
    given_inputs = {f"input_{index}": array for index, array in enumerate(arrays)}
    request = to_forward_request(encoded([datum(tokens, **given_inputs), datum()]))
    assert len(request.data) == 2
    assert model_input_ids(request.data[0].model_input).tolist() == tokens
    found = inputs_of(request)
    assert found.keys() == given_inputs.keys()
    for key, array in given_inputs.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(np.float32), np.dtype(np.int64)]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0, 0, 0, 0, 3, 7]),
    )
)
def test_sparse_tensors_are_what_torch_makes_of_them(array) -> None:
    sent = tinker.TensorData.from_torch_sparse(torch.from_numpy(array))
    found = inputs_of(to_forward_request(encoded([datum(weights=sent)])))["weights"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, sent.to_torch().numpy())
    np.testing.assert_array_equal(found, array)


def test_the_sparse_way_is_taken_at_all() -> None:
    sent = tinker.TensorData.from_torch_sparse(torch.eye(9))
    message = encoded([datum(weights=sent)])
    assert message.data[0].loss_fn_inputs["weights"].HasField("sparse_csr")
    np.testing.assert_array_equal(inputs_of(to_forward_request(message))["weights"], np.eye(9))


def test_int32_and_bfloat16_become_what_the_sdk_makes_of_them() -> None:
    ints = of_tensor(dtype=tinker_pb2.DTYPE_INT32, shape=[3], dense=np.array([-1, 0, 2**31 - 1], "<i4").tobytes())
    assert inputs_of(to_forward_request(ints))["weights"].tolist() == [-1, 0, 2**31 - 1]
    numbers = torch.tensor([1.0, -0.15625, 3e38, float("inf")], dtype=torch.bfloat16)
    halves = of_tensor(
        dtype=tinker_pb2.DTYPE_BFLOAT16, shape=[4], dense=numbers.view(torch.uint16).numpy().astype("<u2").tobytes()
    )
    assert inputs_of(to_forward_request(halves))["weights"].tolist() == numbers.float().tolist()


def csr(values=(1.0,), crow=(0, 1, 1), columns=(0,), shape=(2, 3)):
    return of_tensor(
        dtype=tinker_pb2.DTYPE_FLOAT32,
        shape=shape,
        sparse_csr=tinker_pb2.SparseCsr(
            values=np.array(values, "<f4").tobytes(),
            crow_indices=np.array(crow, "<i8").tobytes(),
            col_indices=np.array(columns, "<i8").tobytes(),
        ),
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (csr(shape=(6,)), "shape"),
        (csr(shape=(-2, 3)), "shape"),
        (csr(shape=()), "shape"),
        (csr(crow=(0, 1)), "crow_indices"),
        (csr(crow=(0, 2, 1)), "crow_indices"),
        (csr(crow=(1, 1, 1)), "crow_indices"),
        (csr(crow=()), "crow_indices"),
        (csr(crow=(0, 1, 2)), "crow_indices"),
        (csr(columns=(3,)), "col_indices"),
        (csr(columns=(-1,)), "col_indices"),
        (csr(values=(1.0, 2.0), crow=(0, 2, 2), columns=(1, 1)), "col_indices"),
        (csr(values=(1.0, 2.0), crow=(0, 2, 2), columns=(2, 1)), "col_indices"),
        (csr(values=(1.0, 2.0)), "values"),
        (csr(shape=(2, 2**60)), ""),
        (csr(crow=(0,) + (1,) * 10_000, shape=(10_000, 10_000)), ""),
        (of_tensor(dtype=0, dense=b"1234"), "dtype"),
        (of_tensor(dtype=9, dense=b"1234"), "dtype"),
        (of_tensor(dtype=tinker_pb2.DTYPE_BFLOAT16, dense=b"123"), "data"),
        (of_tensor(dtype=tinker_pb2.DTYPE_FLOAT32, dense=b"123"), "data"),
    ],
)
def test_a_tensor_that_is_none_is_refused_by_name(message, field: str) -> None:
    assert refused(message).field == f"data[0].loss_fn_inputs.weights{field and '.'}{field}"


def test_many_sparse_tensors_together_are_bounded_as_well(monkeypatch) -> None:
    monkeypatch.setattr("farstep_infra.gateway.data.MAX_DENSE_BYTES", 1 << 20)
    one = csr(crow=(0,) + (1,) * 100, shape=(100, 1200)).data[0]
    assert to_forward_request(tinker_pb2.ForwardBackwardRequest(loss_fn="cross_entropy", data=[one]))
    assert refused(tinker_pb2.ForwardBackwardRequest(loss_fn="cross_entropy", data=[one] * 3)).field.startswith(
        "data[2]"
    )


@given(st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=32), st.lists(st.integers(-4, 9), max_size=3))
def test_whatever_claims_to_be_sparse_is_a_tensor_or_refused(crow, columns, values, shape) -> None:
    message = of_tensor(
        dtype=tinker_pb2.DTYPE_FLOAT32,
        shape=shape,
        sparse_csr=tinker_pb2.SparseCsr(values=values, crow_indices=crow, col_indices=columns),
    )
    try:
        request = to_forward_request(message)
    except InvalidInput as error:
        field = error.field
    else:
        field = "data[0].loss_fn_inputs.weights"
        assert inputs_of(request)["weights"].shape == tuple(shape)
    assert field.startswith("data[0].loss_fn_inputs.weights")


def test_images_are_passed_on_and_audio_is_refused() -> None:
    message = tinker_pb2.ForwardBackwardRequest(
        data=[{"model_input": [{"image": {"data": b"png!", "format": "png", "expected_tokens": 7}}]}]
    )
    ours = to_forward_request(message).data[0].model_input.chunks[0]
    assert ours.image == common_pb2.ImageChunk(data=b"png!", format="png", expected_tokens=7)
    message.data[0].model_input.add().dmel.dmel = b"sound"
    assert refused(message).field == "data[0].model_input.chunks[1]"
    message.data[0].model_input[1].Clear()
    assert refused(message).field == "data[0].model_input.chunks[1]"


def sampled_datum(spans, **inputs):
    plain = datum((1, 2, 3), target_tokens=[2, 3, 4], logprobs=[0.0, -1.0, -2.0], **inputs)
    return plain.with_provenance([tinker.PromptProvenanceSpan(sequence_id="s", length=3)], spans)


def prompt(length):
    return tinker.PromptProvenanceSpan(sequence_id="s", length=length)


def sampled(length):
    return tinker.SampledProvenanceSpan(sequence_id="s", length=length)


def test_stable_reinforce_is_of_sampled_tokens() -> None:
    spans = [prompt(1), sampled(0), sampled(2)]
    given_datum = sampled_datum(spans, advantages=[0.0, 1.0, 1.0])
    found = inputs_of(to_forward_request(encoded([given_datum], "stable_reinforce")))
    assert found["weights"].tolist() == [0.0, 1.0, 1.0]
    weighted = sampled_datum(spans, advantages=[0.0, 1.0, 1.0], weights=[0.5, 0.5, 0.25])
    found = inputs_of(to_forward_request(encoded([weighted], "stable_reinforce")))
    assert found["weights"].tolist() == [0.0, 0.5, 0.25]
    assert "weights" not in inputs_of(to_forward_request(encoded([given_datum], "ppo")))


def test_spans_that_do_not_fit_are_refused_by_name() -> None:
    message = encoded([sampled_datum([prompt(1), sampled(2)], advantages=[0.5, 1.0, 1.0])], "stable_reinforce")
    assert refused(message).field == "data[0].loss_fn_inputs.advantages"
    message.data[0].loss_fn_input_spans[1].sampled_tokens.length = 2**62
    assert refused(message).field == "data[0].loss_fn_input_spans"
    message.data[0].loss_fn_input_spans[1].sampled_tokens.length = -1
    assert refused(message).field == "data[0].loss_fn_input_spans[1]"
    message.data[0].loss_fn_input_spans[1].Clear()
    assert refused(message).field == "data[0].loss_fn_input_spans[1]"
    del message.data[0].loss_fn_inputs["target_tokens"]
    assert refused(message).field == "data[0].loss_fn_inputs"


def test_our_messages_have_the_sdks_names_and_numbers() -> None:
    ours, theirs = tinker_pb2.DESCRIPTOR.message_types_by_name, tinker_public_pb2.DESCRIPTOR.message_types_by_name
    for name, message in ours.items():
        assert {(field.name, field.number, field.type) for field in message.fields} <= {
            (field.name, field.number, field.type) for field in theirs[name].fields
        }


def test_nothing_is_a_request_without_data() -> None:
    assert to_forward_request(tinker_pb2.ForwardBackwardRequest()) == training_pb2.ForwardRequest()
