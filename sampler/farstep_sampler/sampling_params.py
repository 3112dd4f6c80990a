"""The settings of one request, each checked, with its default filled in where it was left out.

Every function takes the message and gives one setting; what is wrong is refused by the setting's name. What the
text must match is `constraint`'s.
"""

from __future__ import annotations

import numpy as np

from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import IntArray
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.penalties import Penalties

MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MIN_TEMPERATURE = 1e-3  # below, a temperature is 0 or a mistake
MAX_TEMPERATURE = 1e6  # far above, nothing is left of a logit in fp32
MAX_ADDITIVE_PENALTY = 2.0
MAX_REPETITION_PENALTY = 100.0
MAX_BIAS = 100.0


def max_tokens_of(params: pb.SamplingParams, *, num_prompt: int, max_seq_len: int, looks_at_prompt: bool) -> int:
    room = max_seq_len - num_prompt
    field = "params.max_tokens"
    if not params.HasField("max_tokens"):
        if room == 0:
            raise InvalidInput(f"{num_prompt} tokens leave no room in the context of {max_seq_len}", field="prompt")
        return room
    wanted = params.max_tokens
    if wanted < 0:
        raise InvalidInput(f"{wanted} is negative", field=field)
    if wanted == 0 and not looks_at_prompt:
        raise InvalidInput("0 makes sense with prompt log-probabilities only", field=field)
    if wanted > room:
        raise InvalidInput(
            f"{num_prompt} prompt tokens and {wanted} more are over the context of {max_seq_len}",
            field=field,
            hint=f"at most {room}, or leave max_tokens out",
        )
    return wanted


def min_tokens_of(params: pb.SamplingParams, *, max_tokens: int, num_stop_tokens: int, vocab_size: int) -> int:
    wanted, field = params.min_tokens, "params.min_tokens"
    if not 0 <= wanted <= max_tokens:
        raise InvalidInput(f"{wanted} is not between 0 and the {max_tokens} tokens there may be", field=field)
    if wanted and num_stop_tokens == vocab_size:
        raise InvalidInput("every token of the vocabulary is a stop token: none is left", field=field)
    return wanted


def temperature_of(params: pb.SamplingParams) -> float:
    value = params.temperature if params.HasField("temperature") else 1.0
    if not (value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE):
        raise InvalidInput(
            f"{value} is not 0 (greedy) or between {MIN_TEMPERATURE} and {MAX_TEMPERATURE:g}",
            field="params.temperature",
        )
    return value


def top_k_of(params: pb.SamplingParams) -> int | None:
    """None where it restricts nothing."""
    if not params.HasField("top_k") or params.top_k == -1:
        return None
    if params.top_k < 1:
        raise InvalidInput(f"{params.top_k} is not -1 or at least 1", field="params.top_k")
    return params.top_k


def top_p_of(params: pb.SamplingParams) -> float:
    value = params.top_p if params.HasField("top_p") else 1.0
    if not 0 < value <= 1:
        raise InvalidInput(f"{value} is not above 0 and at most 1", field="params.top_p")
    return value


def min_p_of(params: pb.SamplingParams) -> float:
    if not 0 <= params.min_p <= 1:
        raise InvalidInput(f"{params.min_p} is not between 0 and 1", field="params.min_p")
    return params.min_p


def penalties_of(params: pb.SamplingParams, prompt: IntArray) -> Penalties | None:
    """None where there are none."""
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(params, name)
        if not abs(value) <= MAX_ADDITIVE_PENALTY:
            raise InvalidInput(
                f"{value} is not between {-MAX_ADDITIVE_PENALTY} and {MAX_ADDITIVE_PENALTY}", field=f"params.{name}"
            )
    repetition = params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
    if not 1 / MAX_REPETITION_PENALTY <= repetition <= MAX_REPETITION_PENALTY:
        raise InvalidInput(
            f"{repetition} is not between {1 / MAX_REPETITION_PENALTY} and {MAX_REPETITION_PENALTY}",
            field="params.repetition_penalty",
        )
    seen = np.unique(prompt) if repetition != 1 else prompt[:0]
    penalties = Penalties(params.presence_penalty, params.frequency_penalty, repetition, seen)
    return penalties if penalties.change_anything else None


def logit_bias_of(params: pb.SamplingParams, *, vocab_size: int) -> tuple[tuple[int, float], ...]:
    for token, bias in params.logit_bias.items():
        field = f"params.logit_bias[{token}]"
        if not 0 <= token < vocab_size:
            raise InvalidInput(f"token {token} is outside the vocabulary of {vocab_size}", field=field)
        if not abs(bias) <= MAX_BIAS:
            raise InvalidInput(f"{bias} is not between {-MAX_BIAS} and {MAX_BIAS}", field=field)
    return tuple(sorted(params.logit_bias.items()))


def stop_tokens_of(
    params: pb.SamplingParams, *, vocab_size: int, eos_token_ids: tuple[int, ...], is_guided: bool
) -> frozenset[int]:
    """With the model's own end tokens among them, unless the request ignores those."""
    for index, token in enumerate(params.stop_tokens):
        if not 0 <= token < vocab_size:
            raise InvalidInput(
                f"token {token} is outside the vocabulary of {vocab_size}", field=f"params.stop_tokens[{index}]"
            )
    if params.ignore_eos and is_guided:
        raise InvalidInput(
            "a text that must match ends with the model's end token, which this ignores", field="params.ignore_eos"
        )
    return frozenset(params.stop_tokens) | frozenset(() if params.ignore_eos else eos_token_ids)


def stop_strings_of(params: pb.SamplingParams) -> tuple[str, ...]:
    if len(params.stop_strings) > MAX_STOPS:
        raise InvalidInput(f"{len(params.stop_strings)} strings, at most {MAX_STOPS}", field="params.stop_strings")
    for index, string in enumerate(params.stop_strings):
        if not 1 <= len(string) <= MAX_STOP_CHARS:
            raise InvalidInput(
                f"{len(string)} characters, not 1 to {MAX_STOP_CHARS}", field=f"params.stop_strings[{index}]"
            )
    return tuple(params.stop_strings)
