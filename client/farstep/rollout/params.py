"""`SamplingParams` of rollouts: what a policy is sampled with, in the terms of rollouts.

It becomes the SDK's for one prompt, and OpenAI's parameters for a request that leaves them open. Samples nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farstep import types
from farstep._numbers import check_number

# What leaves a distribution as it is.
_PLAIN: Mapping[str, tuple[float, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (-1, 0),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a policy is sampled.

    Args:
        greedy: takes the likeliest token, whatever `temperature` says.
        max_new_tokens: of one answer; None: up to the context.
        max_context_len: of prompt and answer, in a dialogue of all turns; a prompt that fills it gets an empty answer
            with the finish reason "length".
        max_prompt_len: longer prompts are not sampled, and counted.
        stop, stop_token_ids: what ends an answer; what was matched is part of its tokens.
        ignore_eos: goes on beyond the model's own end token.
        skip_special_tokens: leaves them out of texts; tokens always have them.
        seed: same seed, same weights, same prompts: same tokens. Every sample and turn draws from a stream of its own.

    Log-probabilities are those of the distribution that was sampled from: they are the trainer's at `temperature` 1.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    max_new_tokens: int | None = 16
    max_context_len: int | None = None
    max_prompt_len: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_context_len", "max_prompt_len"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, lambda each: each >= 1, "at least 1", whole=True)
        if self.stop is not None and not all(isinstance(each, str) for each in self.stop_strings):
            raise TypeError("stop: must be a string or strings; tokens are stop_token_ids")
        self.for_sdk(self.max_new_tokens)

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def room(self, prompt_len: int) -> int | None:
        """How many tokens an answer to such a prompt may have; None: as many as the model's context lets it."""
        limits = [self.max_new_tokens] if self.max_new_tokens is not None else []
        if self.max_context_len is not None:
            limits.append(max(self.max_context_len - prompt_len, 0))
        return min(limits, default=None)

    def for_sdk(self, max_tokens: int | None, *, seed: int | None = None) -> types.SamplingParams:
        """Those of the SDK, which checks their ranges."""
        return types.SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0 if self.greedy else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed if seed is None else seed,
            stop=[*self.stop_strings, *self.stop_token_ids] or None,
            ignore_eos=self.ignore_eos,
        )

    def for_openai(self) -> dict[str, Any]:
        """What a chat request has where its sender said nothing; `max_context_len` holds for all."""
        return {
            "temperature": 0.0 if self.greedy else self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "max_tokens": self.max_new_tokens,
            "stop": self.stop_strings or None,
            "stop_token_ids": list(self.stop_token_ids) or None,
            "ignore_eos": self.ignore_eos,
            "skip_special_tokens": self.skip_special_tokens,
        }

    @property
    def is_models_own(self) -> bool:
        """Whether the distribution sampled from is the model's, so that its log-probabilities are the trainer's."""
        return not self.greedy and is_models_own(self.for_openai())

    def seed_for(self, *place: int) -> int | None:
        """A seed for the draws at a place (prompt, sample, turn …), from the seed of all; None where there is none."""
        if self.seed is None:
            return None
        text = ",".join(map(str, (self.seed, *place)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def is_models_own(asked: Mapping[str, Any]) -> bool:
    """Whether a request for OpenAI's routes is answered from the model's own distribution: nothing warms, cuts, biases
    or constrains it."""
    choice = asked.get("tool_choice")
    forms = asked.get("response_format")
    return (
        all(asked.get(name, plain) in (plain, *others) for name, (plain, *others) in _PLAIN.items())
        and not any(asked.get(name) for name in ("logit_bias", "structured_outputs", "min_tokens"))
        and (not forms or forms.get("type") == "text")
        and (choice is None or choice in ("auto", "none"))
    )
