"""Results as the real SDK decodes and combines them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinker.lib.chunked_fwdbwd_helpers import combine_fwd_bwd_output_results
from tinker.proto.response_conv import deserialize_forward_backward_output

from farstep_infra.gateway.outputs import optim_metrics, to_bytes, to_tinker
from farstep_proto.tensors import tensor_to_proto
from farstep_proto.v1 import training_pb2

# From the description of the wire.
GOLDEN = bytes.fromhex(
    "0a0b41727261795265636f726412440a086c6f6770726f627312360a086c6f6770726f6273122a0a0c000000bf000080bf000000c01218000000"
    "000000000008000000000000000c00000000000000180118021a130a086c6f73733a73756d110000000000000c40"
)


def output(arrays, metrics=None, *, name="logprobs"):
    return training_pb2.ForwardBackwardOutput(
        metrics=metrics or {},
        loss_fn_outputs=[training_pb2.DatumOutput(fields={name: tensor_to_proto(array)}) for array in arrays],
    )


def decoded(ours):
    return deserialize_forward_backward_output(to_bytes(to_tinker(ours)))


def test_the_golden() -> None:
    arrays = [np.array([-0.5, -1.0], np.float32), np.array([-2.0], np.float32)]
    assert to_bytes(to_tinker(output(arrays, {"loss:sum": 3.5}))) == GOLDEN


@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=8),
    dtype=st.sampled_from([np.float32, np.int64]),
)
def test_the_sdk_reads_every_datum_back(shapes, dtype) -> None:
    """K of 0 stands for no second dimension."""
    arrays = []
    for index, (num_tokens, k) in enumerate(shapes):
        shape = (num_tokens, k) if k else (num_tokens,)
        arrays.append((np.arange(np.prod(shape)).reshape(shape) + 100 * index).astype(dtype))
    found = decoded(output(arrays)).loss_fn_outputs
    assert len(found) == len(arrays)
    for datum, array in zip(found, arrays, strict=True):
        np.testing.assert_array_equal(datum["logprobs"].to_numpy(), array)
        assert datum["logprobs"].to_numpy().dtype == dtype


def test_data_of_one_form_share_a_record() -> None:
    plain, wide, wider = np.zeros(3, np.float32), np.zeros((3, 2), np.float32), np.zeros((3, 4), np.float32)
    assert [record.num_datums for record in to_tinker(output([plain, plain])).loss_fn_outputs] == [2]
    records = to_tinker(output([plain, wide, wide, wider])).loss_fn_outputs
    assert [record.num_datums for record in records] == [1, 2, 1]
    assert [list(record.fields["logprobs"].trailing_shape) for record in records] == [[], [2], [4]]


def test_several_fields_of_one_datum() -> None:
    ours = output([np.array([1.0], np.float32)])
    ours.loss_fn_outputs[0].fields["elementwise_loss"].CopyFrom(tensor_to_proto(np.array([2.0], np.float32)))
    [found] = decoded(ours).loss_fn_outputs
    assert {key: value.tolist() for key, value in found.items()} == {"logprobs": [1.0], "elementwise_loss": [2.0]}
    assert to_tinker(ours).loss_fn_outputs[0].type_tag == "logprobs"


def test_values_of_a_critic() -> None:
    [found] = decoded(output([np.array([1.0], np.float32)], name="values")).loss_fn_outputs
    assert found["values"].tolist() == [1.0]


NAMES = st.text(st.sampled_from("ab:_"), max_size=6).map(lambda name: name + ":mean") | st.sampled_from(
    ["loss:sum", "grad_norm", "return:var", "value:explained_variance", "a:b:sum", "", ":", "custom/x:sum"]
)


@given(st.dictionaries(NAMES, st.floats(-1e6, 1e6), max_size=6))
def test_the_sdk_combines_whatever_we_call_a_metric(metrics) -> None:
    result = decoded(output([np.zeros(1, np.float32)], metrics))
    combined = combine_fwd_bwd_output_results([result, result]).metrics
    assert combined.keys() == result.metrics.keys()
    assert result.metrics["loss:sum"] == metrics.get("loss:sum", 0.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("loss:sum", "loss:sum"),
        ("kl_k1:mean", "kl_k1:mean"),
        ("return:var", "return_var:mean"),
        ("value:explained_variance", "value_explained_variance:mean"),
        ("bare", "bare:mean"),
    ],
)
def test_names_of_metrics(ours: str, theirs: str) -> None:
    assert decoded(output([], {ours: 2.0})).metrics[theirs] == 2.0


def test_metrics_of_a_step() -> None:
    response = training_pb2.OptimStepResponse(metrics={"grad_norm": 2.0, "learning_rate": 1e-3, "step": 4.0})
    assert optim_metrics(response) == {"grad_norm:mean": 2.0, "learning_rate:mean": 1e-3, "step:max": 4.0}


def test_the_same_result_is_the_same_bytes() -> None:
    metrics = {f"m{index}:mean": float(index) for index in range(20)}
    backwards = dict(reversed(metrics.items()))
    assert to_bytes(to_tinker(output([], metrics))) == to_bytes(to_tinker(output([], backwards)))
