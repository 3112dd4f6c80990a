"""Results of samples, byte for byte as the SDK's own encoder writes them."""

import numpy as np

from farstep_infra.gateway.sample_results import to_tinker
from farstep_proto.tensors import ids_to_bytes
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import tinker_pb2

NAN = float("nan")


def floats(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


def longs(*values: int) -> bytes:
    return np.array(values, dtype="<i8").tobytes()


def test_the_golden_result() -> None:
    response = pb.SampleResponse(
        sequences=[pb.SampledSequence(tokens=ids_to_bytes([5, 258]), logprobs=floats(-0.5, -0.25), stop_reason="stop")],
        prompt_logprobs=floats(NAN, -1.5),
        policy_version=3,
    )
    assert to_tinker(response).SerializeToString().hex() == (
        "0a14120805000000020100001a08000000bf000080be12080000c07f0000c0bf"
    )


def test_lengths_and_what_was_not_asked_for() -> None:
    message = to_tinker(pb.SampleResponse(sequences=[pb.SampledSequence(stop_reason="length")]))
    assert message.sequences[0].stop_reason == tinker_pb2.STOP_REASON_LENGTH
    assert not message.HasField("prompt_logprobs")
    assert not message.HasField("topk_prompt_logprobs")
    assert not message.HasField("target_prompt_logprobs")
    assert not message.HasField("prompt_alt_tokens")


def test_candidates_that_there_are_none_of_have_the_sdks_own_mark() -> None:
    topk = pb.TopkLogprobs(
        k=2, token_ids=ids_to_bytes([-1, -1, 7, -1, 8, 9]), logprobs=floats(NAN, NAN, -1, float("-inf"), -1, -2)
    )
    sequence = pb.SampledSequence(tokens=ids_to_bytes([1, 2, 3]), stop_reason="stop", topk_logprobs=topk)
    message = to_tinker(pb.SampleResponse(sequences=[sequence], topk_prompt_logprobs=topk))
    for found in (message.topk_prompt_logprobs, message.sequences[0].topk_sampled_logprobs):
        assert (found.k, found.length) == (2, 3)
        assert found.token_ids == ids_to_bytes([0, 0, 7, 0, 8, 9])
        assert found.logprobs == floats(-99999, -99999, -1, -99999, -1, -2)


def test_targets_come_in_the_layout_in_which_they_were_asked_for() -> None:
    dense = pb.SampleResponse(target_prompt_logprobs=pb.TargetLogprobs(k=2, logprobs=floats(-1, 0, -2, -3)))
    assert to_tinker(dense).target_prompt_logprobs == tinker_pb2.Tensor(
        dense=floats(-1, 0, -2, -3), dtype=tinker_pb2.DTYPE_FLOAT32, shape=[2, 2]
    )
    listed = pb.TargetLogprobs(k=50, logprobs=floats(-1), crow_indices=longs(0, 0, 1), col_indices=longs(49))
    assert to_tinker(pb.SampleResponse(target_prompt_logprobs=listed)).target_prompt_logprobs == tinker_pb2.Tensor(
        sparse_csr=tinker_pb2.SparseCsr(values=floats(-1), crow_indices=longs(0, 0, 1), col_indices=longs(49)),
        dtype=tinker_pb2.DTYPE_FLOAT32,
        shape=[2, 50],
    )


def test_alternatives() -> None:
    drawn = pb.PromptAltTokens(k=3, token_ids=ids_to_bytes([1, 2, 1, 4, 4, 5]), logprobs=floats(*[-1] * 6))
    message = to_tinker(pb.SampleResponse(prompt_alt_tokens=drawn)).prompt_alt_tokens
    assert message.tokens == tinker_pb2.Tensor(
        dense=longs(1, 2, 1, 4, 4, 5), dtype=tinker_pb2.DTYPE_INT64, shape=[2, 3]
    )
    assert message.logprobs == tinker_pb2.Tensor(dense=floats(*[-1] * 6), dtype=tinker_pb2.DTYPE_FLOAT32, shape=[2, 3])
