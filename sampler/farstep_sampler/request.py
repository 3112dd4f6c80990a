"""A sample request as the engine takes it: checked, frozen, without anything of HTTP or protobuf.

Everything that can be wrong with a request is found here, before it is accepted; the engine trusts it.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath, check_run_id
from farstep_proto.tensors import IntArray, model_input_ids
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_proto.validation import check_tokens
from farstep_sampler.versions import AtLeast, Exactly, VersionGate

MAX_SAMPLES = 1024
MAX_TOPK = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
NO_TOP_K = 1 << 31
MIN_TEMPERATURE = 1e-3  # below, a temperature is 0 or a mistake


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the served model takes: tokens in all, token ids, and the ids that end a sequence."""

    max_seq_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What to sample: `source` is a run id, a checkpoint path, or empty for the base model."""

    source: str
    gate: VersionGate
    gate_wait_s: float

    @property
    def is_checkpoint(self) -> bool:
        return "://" in self.source


@dataclass(frozen=True, slots=True, eq=False)
class SampleJob:
    """One prompt [T] and how to continue it `num_samples` times, by up to `max_tokens` tokens each.

    `top_k` is NO_TOP_K where it restricts nothing. `stop_tokens` has the model's end tokens in it,
    unless the request ignores them. Where `num_prompt_topk` or `wants_prompt_logprobs` asks for the prompt's
    log-probabilities, they are at temperature 1.
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

    @property
    def looks_at_prompt(self) -> bool:
        return self.wants_prompt_logprobs or self.num_prompt_topk > 0


def job_of(message: pb.SampleRequest, *, limits: ModelLimits) -> SampleJob:
    """Checks a request and fills in what it leaves open; a missing seed is drawn at random.

    Raises:
        InvalidInput: naming the field.
    """
    params = message.params
    prompt = model_input_ids(message.prompt, field="prompt")
    check_tokens(prompt, vocab_size=limits.vocab_size, max_seq_len=limits.max_seq_len, field="prompt")
    looks_at_prompt = message.include_prompt_logprobs or message.topk_prompt_logprobs > 0
    top_k = params.top_k if params.HasField("top_k") else -1
    return SampleJob(
        prompt=prompt,
        num_samples=_whole(message.num_samples, "num_samples", least=1, most=MAX_SAMPLES),
        max_tokens=_max_tokens(params, len(prompt), limits, looks_at_prompt=looks_at_prompt),
        temperature=_temperature(params),
        top_k=NO_TOP_K if top_k == -1 else _whole(top_k, "params.top_k", least=1, most=(1 << 31) - 1, other="-1"),
        top_p=_top_p(params),
        min_p=_min_p(params),
        seed=params.seed if params.HasField("seed") else secrets.randbits(63),
        stop_tokens=_stop_tokens(params, limits),
        stop_strings=_stop_strings(params),
        wants_prompt_logprobs=message.include_prompt_logprobs,
        num_prompt_topk=_topk(message.topk_prompt_logprobs, "topk_prompt_logprobs", limits),
        num_topk=_topk(message.topk_logprobs, "topk_logprobs", limits),
    )


def target_of(message: pb.SampleRequest, *, gate: VersionGate, default_wait_s: float) -> Target:
    """Whom a request wants to sample.

    Raises:
        InvalidInput: both a run and a checkpoint, names that are none, or a gate without a run.
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
    return Target(source, gate, wait_s)


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


def version_of(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidInput(f"{text!r} is not a policy version", field=field)
    return int(text)


def _max_tokens(params: pb.SamplingParams, num_prompt: int, limits: ModelLimits, *, looks_at_prompt: bool) -> int:
    room = limits.max_seq_len - num_prompt
    field = "params.max_tokens"
    if not params.HasField("max_tokens"):
        if room == 0:
            raise InvalidInput(
                f"{num_prompt} tokens leave no room in the context of {limits.max_seq_len}", field="prompt"
            )
        return room
    wanted = params.max_tokens
    if wanted < 0:
        raise InvalidInput(f"{wanted} is negative", field=field)
    if wanted == 0 and not looks_at_prompt:
        raise InvalidInput("0 makes sense with prompt log-probabilities only", field=field)
    if wanted > room:
        raise InvalidInput(
            f"{num_prompt} prompt tokens and {wanted} more are over the context of {limits.max_seq_len}",
            field=field,
            hint=f"at most {room}, or leave max_tokens out",
        )
    return wanted


def _temperature(params: pb.SamplingParams) -> float:
    value = params.temperature if params.HasField("temperature") else 1.0
    if not (value == 0 or MIN_TEMPERATURE <= value < math.inf):
        raise InvalidInput(f"{value} is not 0 (greedy) or at least {MIN_TEMPERATURE}", field="params.temperature")
    return value


def _top_p(params: pb.SamplingParams) -> float:
    value = params.top_p if params.HasField("top_p") else 1.0
    if not 0 < value <= 1:
        raise InvalidInput(f"{value} is not above 0 and at most 1", field="params.top_p")
    return value


def _min_p(params: pb.SamplingParams) -> float:
    if not 0 <= params.min_p <= 1:
        raise InvalidInput(f"{params.min_p} is not between 0 and 1", field="params.min_p")
    return params.min_p


def _stop_tokens(params: pb.SamplingParams, limits: ModelLimits) -> frozenset[int]:
    for index, token in enumerate(params.stop_tokens):
        if not 0 <= token < limits.vocab_size:
            raise InvalidInput(
                f"token {token} is outside the vocabulary of {limits.vocab_size}", field=f"params.stop_tokens[{index}]"
            )
    return frozenset(params.stop_tokens) | frozenset(() if params.ignore_eos else limits.eos_token_ids)


def _stop_strings(params: pb.SamplingParams) -> tuple[str, ...]:
    if len(params.stop_strings) > MAX_STOPS:
        raise InvalidInput(f"{len(params.stop_strings)} strings, at most {MAX_STOPS}", field="params.stop_strings")
    for index, string in enumerate(params.stop_strings):
        if not 1 <= len(string) <= MAX_STOP_CHARS:
            raise InvalidInput(
                f"{len(string)} characters, not 1 to {MAX_STOP_CHARS}", field=f"params.stop_strings[{index}]"
            )
    return tuple(params.stop_strings)


def _topk(value: int, field: str, limits: ModelLimits) -> int:
    return _whole(value, field, least=0, most=min(MAX_TOPK, limits.vocab_size))


def _whole(value: int, field: str, *, least: int, most: int, other: str = "") -> int:
    if not least <= value <= most:
        raise InvalidInput(f"{value} is not {other + ' or ' if other else ''}between {least} and {most}", field=field)
    return value
