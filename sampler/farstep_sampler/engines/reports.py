"""What the torch engine tells: of a job that ended, and of what a job that is watched gained in a step.

Pure: it reads sequences and changes none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from farstep_sampler.result import SampleDelta, SampleResult, SampleSequence, Topk
from farstep_sampler.scheduler import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A job that ended, well or not; `ticket` is the one it was submitted with."""

    ticket: int
    outcome: SampleResult | Exception


@dataclass(frozen=True, slots=True, eq=False)
class News:
    """What a job that is watched has gained in a step."""

    ticket: int
    delta: SampleDelta


def sequence_of(sequence: Sequence, stop_reason: str) -> SampleSequence:
    """All of it, as it ended."""
    topk = None
    if sequence.group.job.num_topk:
        topk = Topk(np.stack(sequence.topk_ids).astype(np.int32), np.stack(sequence.topk_logprobs))
    versions = sequence.versions if set(sequence.versions) != {sequence.group.first_version} else []
    return SampleSequence(sequence.tokens, sequence.logprobs, stop_reason, topk, versions)


def delta_of(sequence: Sequence, stop_reason: str | None) -> SampleDelta:
    """Its last token alone."""
    topk = None
    if sequence.group.job.num_topk:
        topk = Topk(sequence.topk_ids[-1][None].astype(np.int32), sequence.topk_logprobs[-1][None])
    last = slice(-1, None)
    return SampleDelta(
        sequence.index, sequence.tokens[last], sequence.logprobs[last], sequence.versions[last], stop_reason, topk
    )
