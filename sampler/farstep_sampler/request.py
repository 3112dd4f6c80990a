"""A sample request as the engine takes it: checked, frozen, without anything of HTTP or protobuf.

Everything that can be wrong with a request is found here, before it is accepted; the engine trusts it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from farstep_proto import paths
from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath, check_run_id
from farstep_proto.tensors import IntArray, model_input_ids
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.validation import check_tokens
from farstep_sampler import sampling_params
from farstep_sampler.constraint import Constraint, constraint_of
from farstep_sampler.penalties import Penalties
from farstep_sampler.prompt_targets import PromptTargets
from farstep_sampler.versions import AtLeast, Exactly, VersionGate
from farstep_serving.keys import OPERATOR, Caller

if TYPE_CHECKING:
    from farstep_sampler.grammars import Grammar

MAX_SAMPLES = 1024
MAX_TOPK = 128
NO_TOP_K = 1 << 31


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model takes: tokens in all, token ids, and the ids that end a sequence."""

    max_seq_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What to sample: `source` is a run id, a checkpoint path, or empty for the base model.

    `follows` says that sequences go on with a newer version of the run when there is one. What the caller may not see
    is to it as if nobody had ever heard of it.
    """

    source: str
    gate: VersionGate
    gate_wait_s: float
    follows: bool = False
    caller: Caller = OPERATOR

    @property
    def is_checkpoint(self) -> bool:
        return "://" in self.source


@dataclass(frozen=True, slots=True, eq=False)
class SampleJob:
    """One prompt [T] and how to continue it `num_samples` times, by up to `max_tokens` tokens each.

    `top_k` is NO_TOP_K where it restricts nothing. `stop_tokens` has the model's end tokens in it,
    unless the request ignores them; among the first `min_tokens` nothing ends it. Where `num_prompt_topk` or
    `wants_prompt_logprobs` asks for the prompt's log-probabilities, they are at temperature 1, of the prompt's tokens
    from `first_scored` on. `num_prompt_alternatives` tokens are drawn for each prompt position but the first.
    `grammar` is `constraint` compiled: a job that has the one must have the other before an engine takes it.
    """

    prompt: IntArray
    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop_tokens: frozenset[int]
    stop_strings: tuple[str, ...]
    wants_prompt_logprobs: bool
    num_prompt_topk: int
    num_topk: int
    min_tokens: int = 0
    penalties: Penalties | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    grammar: Grammar | None = None
    first_scored: int = 1
    prompt_targets: PromptTargets | None = None
    num_prompt_alternatives: int = 0

    @property
    def looks_at_prompt(self) -> bool:
        return self.first_looked is not None

    @property
    def first_looked(self) -> int | None:
        """The first prompt position of which anything is asked; what is before it may come from a cache."""
        firsts = [self.first_scored] if self.wants_prompt_logprobs or self.num_prompt_topk else []
        firsts += [int(self.prompt_targets.positions[0])] if self.prompt_targets is not None else []
        firsts += [1] if self.num_prompt_alternatives else []
        return min(firsts, default=None)


def job_of(message: pb.SampleRequest, *, limits: ModelLimits) -> SampleJob:
    """Checks a request and fills in what it leaves open; a missing seed is drawn at random.

    Raises:
        InvalidInput: naming the field.
    """
    params = message.params
    prompt = model_input_ids(message.prompt, field="prompt")
    check_tokens(prompt, vocab_size=limits.vocab_size, max_seq_len=limits.max_seq_len, field="prompt")
    max_tokens = sampling_params.max_tokens_of(
        params,
        num_prompt=len(prompt),
        max_seq_len=limits.max_seq_len,
        looks_at_prompt=message.include_prompt_logprobs
        or message.topk_prompt_logprobs > 0
        or message.HasField("target_prompt_logprobs")
        or message.prompt_alt_tokens_k > 0,
    )
    constraint = constraint_of(params)
    stop_tokens = sampling_params.stop_tokens_of(
        params,
        vocab_size=limits.vocab_size,
        eos_token_ids=limits.eos_token_ids,
        is_guided=constraint is not None,
    )
    min_tokens = sampling_params.min_tokens_of(
        params, max_tokens=max_tokens, num_stop_tokens=len(stop_tokens), vocab_size=limits.vocab_size
    )
    return SampleJob(
        prompt=prompt,
        num_samples=_whole(message.num_samples, "num_samples", least=1, most=MAX_SAMPLES),
        max_tokens=max_tokens,
        temperature=sampling_params.temperature_of(params),
        top_k=sampling_params.top_k_of(params) or NO_TOP_K,
        top_p=sampling_params.top_p_of(params),
        min_p=sampling_params.min_p_of(params),
        seed=params.seed if params.HasField("seed") else secrets.randbits(63),
        stop_tokens=stop_tokens,
        stop_strings=sampling_params.stop_strings_of(params),
        wants_prompt_logprobs=message.include_prompt_logprobs,
        num_prompt_topk=_topk(message.topk_prompt_logprobs, "topk_prompt_logprobs", limits),
        num_topk=_topk(message.topk_logprobs, "topk_logprobs", limits),
        min_tokens=min_tokens,
        penalties=sampling_params.penalties_of(params, prompt),
        logit_bias=sampling_params.logit_bias_of(params, vocab_size=limits.vocab_size),
        constraint=constraint,
        first_scored=_first_scored(message, num_prompt=len(prompt)),
        prompt_targets=_prompt_targets(message, num_prompt=len(prompt), limits=limits),
        num_prompt_alternatives=_whole(message.prompt_alt_tokens_k, "prompt_alt_tokens_k", least=0, most=MAX_TOPK),
    )


def _first_scored(message: pb.SampleRequest, *, num_prompt: int) -> int:
    if not message.HasField("prompt_logprobs_last_n"):
        return 1
    field = "prompt_logprobs_last_n"
    if not message.include_prompt_logprobs:
        raise InvalidInput("it narrows down include_prompt_logprobs, which is not set", field=field)
    if num_prompt == 1:
        raise InvalidInput("a prompt of one token has none that can be scored", field=field)
    return num_prompt - _whole(message.prompt_logprobs_last_n, field, least=1, most=num_prompt - 1)


def _prompt_targets(message: pb.SampleRequest, *, num_prompt: int, limits: ModelLimits) -> PromptTargets | None:
    if not message.HasField("target_prompt_logprobs"):
        return None
    return PromptTargets.of(
        message.target_prompt_logprobs,
        num_prompt=num_prompt,
        vocab_size=limits.vocab_size,
        most_values=MAX_TOPK * (num_prompt - 1),
    )


def target_of(message: pb.SampleRequest, *, gate: VersionGate, caller: Caller, default_wait_s: float) -> Target:
    """Whom a request wants to sample.

    Raises:
        InvalidInput: both a run and a checkpoint, names that are none, or a gate or `in_flight` that does not fit.
    """
    if message.run_id and message.model_path:
        raise InvalidInput("give run_id or model_path, not both", field="model_path")
    source = str(CheckpointPath.parse(message.model_path, field="model_path")) if message.model_path else ""
    if message.run_id:
        source = check_run_id(message.run_id)
    if not message.run_id and gate != AtLeast(0):
        raise InvalidInput("a gate on the policy version needs a run_id", field="run_id")
    wait_s = message.gate_wait_s if message.HasField("gate_wait_s") else default_wait_s
    if not 0 <= wait_s < math.inf:
        raise InvalidInput(f"{wait_s} is not a number of seconds", field="gate_wait_s")
    if message.in_flight not in ("", "finish", "switch"):
        raise InvalidInput(f"{message.in_flight!r} is neither 'finish' nor 'switch'", field="in_flight")
    follows = message.in_flight == "switch"
    if follows and (not message.run_id or isinstance(gate, Exactly)):
        raise InvalidInput("only a run that is not pinned to exactly one version can switch", field="in_flight")
    return Target(source, gate, wait_s, follows, caller)


def gate_of(*, at_least: str | None, exactly: str | None, fields: tuple[str, str]) -> VersionGate:
    """The gate in a request's headers, whose names are `fields`.

    Raises:
        InvalidInput: both, or something that is no version.
    """
    if at_least is not None and exactly is not None:
        raise InvalidInput(f"give {fields[0]} or {fields[1]}, not both", field=fields[1])
    if exactly is not None:
        return Exactly(version_of(exactly, fields[1]))
    return AtLeast(0 if at_least is None else version_of(at_least, fields[0]))


def gate_of_headers(headers: Mapping[str, str]) -> VersionGate:
    """Raises InvalidInput as `gate_of`."""
    names = (paths.MIN_POLICY_VERSION, paths.EXACT_POLICY_VERSION)
    return gate_of(at_least=headers.get(names[0]), exactly=headers.get(names[1]), fields=names)


def version_of(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidInput(f"{text!r} is not a policy version", field=field)
    return int(text)


def _topk(value: int, field: str, limits: ModelLimits) -> int:
    return _whole(value, field, least=0, most=min(MAX_TOPK, limits.vocab_size))


def _whole(value: int, field: str, *, least: int, most: int) -> int:
    if not least <= value <= most:
        raise InvalidInput(f"{value} is not between {least} and {most}", field=field)
    return value
