"""What comes of a sample job, and its form on the wire."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from farstep_proto.tensors import IntArray, ids_to_bytes
from farstep_proto.v1 import sampling_pb2 as pb

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Topk:
    """The K likeliest tokens at each of N positions, the likeliest first: [N, K]."""

    ids: IntArray
    logprobs: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SampleSequence:
    """One continuation: tokens [N] with log-probabilities [N]; `stop_reason` is "stop" or "length"."""

    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    topk: Topk | None


@dataclass(frozen=True, slots=True, eq=False)
class SampleResult:
    """`prompt_logprobs` [T] are NaN at index 0 and the ids of `prompt_topk` −1 there: no distribution precedes it."""

    sequences: list[SampleSequence]
    prompt_logprobs: FloatArray | None
    prompt_topk: Topk | None


def response_of(result: SampleResult, *, policy_version: int) -> pb.SampleResponse:
    response = pb.SampleResponse(
        sequences=[_sequence(sequence) for sequence in result.sequences], policy_version=policy_version
    )
    if result.prompt_logprobs is not None:
        response.prompt_logprobs = result.prompt_logprobs.astype("<f4").tobytes()
    if result.prompt_topk is not None:
        response.topk_prompt_logprobs.CopyFrom(_topk(result.prompt_topk))
    return response


def _sequence(sequence: SampleSequence) -> pb.SampledSequence:
    message = pb.SampledSequence(
        tokens=ids_to_bytes(sequence.tokens),
        logprobs=np.array(sequence.logprobs, dtype="<f4").tobytes(),
        stop_reason=sequence.stop_reason,
    )
    if sequence.topk is not None:
        message.topk_logprobs.CopyFrom(_topk(sequence.topk))
    return message


def _topk(topk: Topk) -> pb.TopkLogprobs:
    return pb.TopkLogprobs(
        k=topk.ids.shape[1], token_ids=ids_to_bytes(topk.ids), logprobs=topk.logprobs.astype("<f4").tobytes()
    )
