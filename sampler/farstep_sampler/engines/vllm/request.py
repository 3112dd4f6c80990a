"""A sample job in vLLM's terms, and what vLLM answers in ours. Pure: nothing runs here.

vLLM is asked for token ids alone. Where a sequence ends is decided as in the torch engine: end tokens are passed as
stop tokens, and stop strings are watched for here, so that both engines end a sequence at the same token.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np
from llguidance.gbnf_to_lark import any_to_lark
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from farstep_proto.errors import InvalidInput
from farstep_sampler.constraint import Constraint
from farstep_sampler.engines.base import not_finite
from farstep_sampler.request import NO_TOP_K, SampleJob
from farstep_sampler.result import FloatArray, Topk

MIN_TEMPERATURE = 0.01  # vLLM would silently raise lower ones to this
MAX_TEMPERATURE = 2.0
_TORCH = "use the torch engine"
_SEED_BITS = 62  # the seed and what vLLM adds to it fit into an int64


def sampling_params(job: SampleJob, *, index: int, num_done: int, streams: bool) -> SamplingParams:
    """How to continue sample `index` of a job, of which there are `num_done` tokens already.

    Args:
        streams: whether tokens are wanted as they come, not all at the end.
    """
    penalties = job.penalties
    return SamplingParams(
        temperature=job.temperature,
        top_k=0 if job.top_k == NO_TOP_K else job.top_k,
        top_p=job.top_p,
        min_p=job.min_p,
        seed=seed_of(job.seed, index, num_done),
        presence_penalty=penalties.presence if penalties else 0.0,
        frequency_penalty=penalties.frequency if penalties else 0.0,
        repetition_penalty=penalties.repetition if penalties else 1.0,
        logit_bias=dict(job.logit_bias) or None,
        structured_outputs=_structured(job.constraint) if job.constraint else None,
        max_tokens=job.max_tokens - num_done,
        min_tokens=max(0, job.min_tokens - num_done),
        stop_token_ids=sorted(job.stop_tokens),
        ignore_eos=True,  # the model's end tokens are among the stop tokens, unless the job ignores them
        logprobs=job.num_topk,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY,
    )


def remembers(job: SampleJob) -> bool:
    """Whether a sample's next token depends on more of what it has said than the model sees."""
    return job.penalties is not None or job.constraint is not None


def _structured(constraint: Constraint) -> StructuredOutputsParams:
    match constraint.kind:
        case "json_schema":
            return StructuredOutputsParams(json=constraint.text)
        case "regex":
            return StructuredOutputsParams(regex=constraint.text)
        case "choice":
            return StructuredOutputsParams(choice=json.loads(constraint.text))
        case "grammar":
            return StructuredOutputsParams(grammar=any_to_lark(constraint.text))


def check_job(job: SampleJob) -> None:
    """Raises InvalidInput for what the torch engine takes and vLLM does not."""
    if job.temperature and not MIN_TEMPERATURE <= job.temperature <= MAX_TEMPERATURE:
        raise InvalidInput(
            f"{job.temperature} is not 0 or between {MIN_TEMPERATURE} and {MAX_TEMPERATURE}, as vLLM takes them",
            field="params.temperature",
        )
    if job.prompt_targets is not None:
        raise InvalidInput("vLLM scores no tokens but the prompt's", field="target_prompt_logprobs", hint=_TORCH)
    if job.num_prompt_alternatives:
        raise InvalidInput("vLLM draws no tokens for a prompt", field="prompt_alt_tokens_k", hint=_TORCH)


def is_restricted(job: SampleJob) -> bool:
    """Whether some tokens are excluded from the choice."""
    return job.temperature > 0 and (job.top_k != NO_TOP_K or job.top_p < 1 or job.min_p > 0)


def probe_params() -> SamplingParams:
    """One token, chosen from one: its log-probability is below 0 only if it is that of the whole distribution."""
    return SamplingParams(
        temperature=MAX_TEMPERATURE, top_k=1, max_tokens=1, logprobs=0, flat_logprobs=True, detokenize=False
    )


def prompt_params(job: SampleJob) -> SamplingParams:
    """How to look at a prompt only; vLLM insists on one token more, which nobody reads."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        prompt_logprobs=job.num_prompt_topk,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def seed_of(seed: int, index: int, num_done: int) -> int:
    """A stream for each sample of a seed, unlike those of the seeds beside it.

    vLLM's own samples of a seed s are those of s, s + 1, …: the second sample of seed 1 would be the first of 2.
    """
    digest = hashlib.blake2b(f"{seed}/{index}/{num_done}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _SEED_BITS)


def sampled_logprobs(found: FlatLogprobs, num_topk: int) -> tuple[list[float], Topk | None]:
    """Log-probabilities of the sampled tokens, and the likeliest tokens beside them.

    Raises:
        ModelError: they are not numbers.
    """
    logprobs = [found.logprobs[start] for start in found.start_indices]
    if any(map(math.isnan, logprobs)):
        raise not_finite()
    if not num_topk:
        return logprobs, None
    topk = Topk(np.zeros((len(found), num_topk), np.int32), np.zeros((len(found), num_topk), np.float32))
    _fill(topk, found, range(len(found)))
    return logprobs, topk


def prompt_logprobs(found: FlatLogprobs, job: SampleJob) -> tuple[FloatArray | None, Topk | None]:
    """As `SampleResult` has them: the first position has neither, nor has one that was not asked for."""
    num_prompt, first = len(job.prompt), job.first_scored
    logprobs = np.full(num_prompt, np.nan, np.float32)
    logprobs[first:] = [found.logprobs[start] for start in found.start_indices[first:num_prompt]]
    topk = Topk(
        np.full((num_prompt, job.num_prompt_topk), -1, np.int32),
        np.full((num_prompt, job.num_prompt_topk), np.nan, np.float32),
    )
    _fill(topk, found, range(first, num_prompt))
    return logprobs if job.wants_prompt_logprobs else None, topk if job.num_prompt_topk else None


def _fill(topk: Topk, found: FlatLogprobs, positions: Sequence[int]) -> None:
    """A position's entries are the token that stands there, then the likeliest, best first."""
    num_topk = topk.ids.shape[1]
    for position in positions:
        first = found.start_indices[position] + 1
        topk.ids[position] = found.token_ids[first : first + num_topk]
        topk.logprobs[position] = found.logprobs[first : first + num_topk]
