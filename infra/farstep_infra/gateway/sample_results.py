"""What was sampled, as the Tinker wire says it: pure; tokens and log-probabilities are the same bytes on both wires."""

from __future__ import annotations

import numpy as np

from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.v1 import tinker_pb2

_NOTHING = -99_999.0  # the log-probability of a candidate that there is none of; its token is 0


def to_tinker(response: pb.SampleResponse) -> tinker_pb2.SampleResponse:
    message = tinker_pb2.SampleResponse(
        sequences=[_sequence(sequence) for sequence in response.sequences],
        prompt_cache_hit_tokens=response.prompt_cache_hit_tokens,
    )
    if response.prompt_logprobs:
        message.prompt_logprobs = response.prompt_logprobs
    if response.HasField("topk_prompt_logprobs"):
        message.topk_prompt_logprobs.CopyFrom(_topk(response.topk_prompt_logprobs))
    if response.HasField("target_prompt_logprobs"):
        message.target_prompt_logprobs.CopyFrom(_targets(response.target_prompt_logprobs))
    if response.HasField("prompt_alt_tokens"):
        message.prompt_alt_tokens.CopyFrom(_alternatives(response.prompt_alt_tokens))
    return message


def _sequence(sequence: pb.SampledSequence) -> tinker_pb2.SampledSequence:
    is_stop = sequence.stop_reason == "stop"
    message = tinker_pb2.SampledSequence(
        stop_reason=tinker_pb2.STOP_REASON_STOP if is_stop else tinker_pb2.STOP_REASON_LENGTH,
        tokens=sequence.tokens,
        logprobs=sequence.logprobs,
    )
    if sequence.HasField("topk_logprobs"):
        message.topk_sampled_logprobs.CopyFrom(_topk(sequence.topk_logprobs))
    return message


def _topk(topk: pb.TopkLogprobs) -> tinker_pb2.TopkLogprobs:
    ids = np.frombuffer(topk.token_ids, dtype="<i4")
    is_there = ids >= 0
    length = len(ids) // topk.k if topk.k else 0
    if is_there.all():
        return tinker_pb2.TopkLogprobs(token_ids=topk.token_ids, logprobs=topk.logprobs, k=topk.k, length=length)
    logprobs = np.where(is_there, np.frombuffer(topk.logprobs, dtype="<f4"), np.float32(_NOTHING))
    return tinker_pb2.TopkLogprobs(
        token_ids=np.where(is_there, ids, 0).astype("<i4").tobytes(),
        logprobs=logprobs.astype("<f4").tobytes(),
        k=topk.k,
        length=length,
    )


def _targets(targets: pb.TargetLogprobs) -> tinker_pb2.Tensor:
    """Of the shape and layout in which they were asked for."""
    if not targets.crow_indices:
        num_rows = len(targets.logprobs) // 4 // targets.k
        return tinker_pb2.Tensor(dense=targets.logprobs, dtype=tinker_pb2.DTYPE_FLOAT32, shape=[num_rows, targets.k])
    listed = tinker_pb2.SparseCsr(
        values=targets.logprobs, crow_indices=targets.crow_indices, col_indices=targets.col_indices
    )
    num_rows = len(targets.crow_indices) // 8 - 1
    return tinker_pb2.Tensor(sparse_csr=listed, dtype=tinker_pb2.DTYPE_FLOAT32, shape=[num_rows, targets.k])


def _alternatives(drawn: pb.PromptAltTokens) -> tinker_pb2.PromptAltTokens:
    ids = np.frombuffer(drawn.token_ids, dtype="<i4")
    shape = [len(ids) // drawn.k, drawn.k]
    return tinker_pb2.PromptAltTokens(
        tokens=tinker_pb2.Tensor(dense=ids.astype("<i8").tobytes(), dtype=tinker_pb2.DTYPE_INT64, shape=shape),
        logprobs=tinker_pb2.Tensor(dense=drawn.logprobs, dtype=tinker_pb2.DTYPE_FLOAT32, shape=shape),
    )
