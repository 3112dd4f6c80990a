"""What comes of a sample job, whole or as it grows, and its form on the wire."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from farstep_proto.tensors import IntArray, ids_to_bytes
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.prompt_targets import TargetLogprobs

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Topk:
    """The K likeliest tokens at each of N positions, the likeliest first: [N, K]."""

    ids: IntArray
    logprobs: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SampleSequence:
    """One continuation: tokens [N] with log-probabilities [N]; `stop_reason` is "stop" or "length".

    `policy_versions` [N] says which version chose each token; empty where all are of the version it began with.
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: str
    topk: Topk | None
    policy_versions: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class SampleResult:
    """`prompt_logprobs` [T] are NaN at index 0 and the ids of `prompt_topk` −1 there: no distribution precedes it.

    So they are where the job does not ask for them. `target_logprobs` are in the layout of the job's `prompt_targets`,
    `alternatives` [T − 1, K] in the order in which they were drawn; row i is about position i + 1.
    `num_cached` are the prompt's tokens whose keys and values were there already, from an earlier request.
    """

    sequences: list[SampleSequence]
    prompt_logprobs: FloatArray | None
    prompt_topk: Topk | None
    num_cached: int = 0
    target_logprobs: TargetLogprobs | None = None
    alternatives: Topk | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SampleDelta:
    """What sample `index` of a job has gained since the last delta: N tokens, with all that is known of each.

    `stop_reason` is None while the sample goes on. `policy_versions` has one version a token.
    """

    index: int
    tokens: list[int]
    logprobs: list[float]
    policy_versions: list[int]
    stop_reason: str | None
    topk: Topk | None


def joined(deltas: Seq[SampleDelta]) -> SampleDelta:
    """Successive deltas of one sample as one."""
    first, last = deltas[0], deltas[-1]
    if first is last:
        return first
    topk = None
    if first.topk is not None:
        topks = [delta.topk for delta in deltas if delta.topk is not None]
        topk = Topk(np.concatenate([t.ids for t in topks]), np.concatenate([t.logprobs for t in topks]))
    return SampleDelta(
        first.index,
        [token for delta in deltas for token in delta.tokens],
        [logprob for delta in deltas for logprob in delta.logprobs],
        [version for delta in deltas for version in delta.policy_versions],
        last.stop_reason,
        topk,
    )


def response_of(result: SampleResult, *, policy_version: int) -> pb.SampleResponse:
    response = pb.SampleResponse(
        sequences=[_sequence(sequence) for sequence in result.sequences],
        policy_version=policy_version,
    )
    tell_of_prompt(result, response)
    return response


def tell_of_prompt(result: SampleResult, message: pb.SampleResponse | pb.SampleEnd) -> None:
    """Fills in what a message says of the prompt."""
    message.prompt_cache_hit_tokens = result.num_cached
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = result.prompt_logprobs.astype("<f4").tobytes()
    if result.prompt_topk is not None:
        message.topk_prompt_logprobs.CopyFrom(topk_to_proto(result.prompt_topk))
    if result.target_logprobs is not None:
        message.target_prompt_logprobs.CopyFrom(result.target_logprobs.to_proto())
    if (drawn := result.alternatives) is not None:
        message.prompt_alt_tokens.k = drawn.ids.shape[1]
        message.prompt_alt_tokens.token_ids = ids_to_bytes(drawn.ids)
        message.prompt_alt_tokens.logprobs = drawn.logprobs.astype("<f4").tobytes()


def _sequence(sequence: SampleSequence) -> pb.SampledSequence:
    message = pb.SampledSequence(
        tokens=ids_to_bytes(sequence.tokens),
        logprobs=np.array(sequence.logprobs, dtype="<f4").tobytes(),
        stop_reason=sequence.stop_reason,
        policy_versions=np.array(sequence.policy_versions, dtype="<i8").tobytes(),
    )
    if sequence.topk is not None:
        message.topk_logprobs.CopyFrom(topk_to_proto(sequence.topk))
    return message


def topk_to_proto(topk: Topk) -> pb.TopkLogprobs:
    return pb.TopkLogprobs(
        k=topk.ids.shape[1], token_ids=ids_to_bytes(topk.ids), logprobs=topk.logprobs.astype("<f4").tobytes()
    )
