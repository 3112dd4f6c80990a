"""The events of a stream of samples: what a job on the engine says as it grows, in its form on the wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from farstep_proto.tensors import ids_to_bytes
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.in_flight import Sampling
from farstep_sampler.result import SampleDelta, SampleResult, tell_of_prompt, topk_to_proto

# One `begin`, deltas, one `end`; whoever takes one closes it, which frees what the samples hold.
Events = AsyncGenerator[pb.SampleEvent, None]


async def events_of(sampling: Sampling, *, version: int) -> Events:
    """What a job says from its beginning, under the version that it begins with; raises why it failed."""
    yield pb.SampleEvent(begin=pb.SampleBegin(policy_version=version))
    async for deltas in sampling:
        for delta in deltas:
            yield pb.SampleEvent(delta=_delta(delta, version=version))
    yield pb.SampleEvent(end=_end(await sampling.result()))


def _delta(delta: SampleDelta, *, version: int) -> pb.SampleDelta:
    message = pb.SampleDelta(
        index=delta.index,
        tokens=ids_to_bytes(delta.tokens),
        logprobs=np.array(delta.logprobs, dtype="<f4").tobytes(),
        stop_reason=delta.stop_reason or "",
    )
    if any(each != version for each in delta.policy_versions):
        message.policy_versions = np.array(delta.policy_versions, dtype="<i8").tobytes()
    if delta.topk is not None:
        message.topk_logprobs.CopyFrom(topk_to_proto(delta.topk))
    return message


def _end(result: SampleResult) -> pb.SampleEnd:
    message = pb.SampleEnd(stop_reasons=[sequence.stop_reason for sequence in result.sequences])
    tell_of_prompt(result, message)
    return message
