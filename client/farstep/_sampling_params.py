"""`SamplingParams`: how to sample, checked where it is made.

What depends on the model, and whether a grammar can be compiled, is found by the server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farstep._numbers import check_number
from farstep.errors import InvalidInputError

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample.

    Args:
        max_tokens: at most so many new tokens; None: up to the model's context.
        temperature: 0 takes the most likely token.
        top_p, top_k, min_p: which tokens may be drawn; 1, -1 and 0 allow all.
        seed: same seed, same weights, same request: same tokens, whatever else is in the batch.
        stop: a string, a token id, or several of both; the matched stop token is included.
        ignore_eos: goes on beyond the model's own end token.
        presence_penalty, frequency_penalty: in [-2, 2], taken from the logits of generated tokens, once or for each
            time; as in the OpenAI API.
        repetition_penalty: in [0.01, 100]; logits of tokens in the prompt or generated are divided by it where they
            are positive and multiplied elsewhere; as in transformers and vLLM.
        logit_bias: token id to a number in [-100, 100] that is added to its logit; -100 bans in effect.
        min_tokens: neither a stop nor the model's end token ends a sequence within its first so many tokens.
        json_schema, regex, grammar, choice: what the text must match, at most one of them. A schema is a dict, JSON
            text, or a pydantic model class; a grammar is EBNF, in Lark's or GBNF's notation. A sequence that is cut
            by `max_tokens` matches only in part: its `stop_reason` is "length".

    Log-probabilities of sampled tokens are those of softmax(logits / temperature) over the vocabulary, after bias,
    penalties, `min_tokens` and what must match, which change the logits; top_p, top_k and min_p restrict the choice
    and do not renormalise. `compute_logprobs` of prompt and tokens gives those of the model alone.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    seed: int | None = None
    stop: str | int | Sequence[str | int] | None = None
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_tokens: int = 0
    json_schema: Mapping[str, Any] | str | type | None = field(default=None, hash=False)
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_number("max_tokens", self.max_tokens, lambda value: value >= 1, "at least 1", whole=True)
        check_number("temperature", self.temperature, lambda v: v == 0 or 1e-3 <= v <= 1e6, "0 or in [0.001, 1000000]")
        check_number("top_p", self.top_p, lambda value: 0 < value <= 1, "in (0, 1]")
        check_number("top_k", self.top_k, lambda value: value == -1 or value >= 1, "-1 or at least 1", whole=True)
        check_number("min_p", self.min_p, lambda value: 0 <= value <= 1, "in [0, 1]")
        if self.seed is not None:
            check_number("seed", self.seed, lambda value: -(2**63) <= value < 2**63, "a 64-bit number", whole=True)
        for name in ("presence_penalty", "frequency_penalty"):
            check_number(name, getattr(self, name), lambda value: -2 <= value <= 2, "in [-2, 2]")
        check_number("repetition_penalty", self.repetition_penalty, lambda v: 0.01 <= v <= 100, "in [0.01, 100]")
        check_number("min_tokens", self.min_tokens, lambda value: value >= 0, "at least 0", whole=True)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidInputError(f"{self.min_tokens} is over max_tokens, {self.max_tokens}", field="min_tokens")
        self.stops()
        _check_bias(self.logit_bias)
        self.constraint()

    def stops(self) -> tuple[list[str], list[int]]:
        """The stop strings and the stop tokens."""
        stops = [self.stop] if isinstance(self.stop, str | int) else list(self.stop or ())
        strings = [stop for stop in stops if isinstance(stop, str)]
        ids = [int(stop) for stop in stops if isinstance(stop, int | np.integer) and not isinstance(stop, bool)]
        if len(strings) + len(ids) != len(stops):
            raise TypeError("stop: must be strings or token ids")
        if "" in strings:
            raise InvalidInputError("an empty string stops nothing", field="stop")
        if any(not 0 <= token <= _INT32.max for token in ids):
            raise InvalidInputError("a token id is negative or too large", field="stop")
        return strings, ids

    def constraint(self) -> dict[str, str | list[str]]:
        """What the text must match as the server takes it: one of the four by its name, or nothing."""
        given = {
            name: getattr(self, name)
            for name in ("json_schema", "regex", "grammar", "choice")
            if getattr(self, name) is not None
        }
        if len(given) > 1:
            raise InvalidInputError(f"give {' or '.join(given)}, not both", field=list(given)[1])
        for name in ("regex", "grammar"):
            if name in given and not isinstance(given[name], str):
                raise TypeError(f"{name}: must be a string, not {type(given[name]).__name__}")
        if "json_schema" in given:
            return {"json_schema": _schema_text(given["json_schema"])}
        if "choice" in given:
            return {"choice": _choices(given["choice"])}
        return given


def _check_bias(logit_bias: Mapping[int, float]) -> None:
    if not isinstance(logit_bias, Mapping):
        raise TypeError(f"logit_bias: must map token ids to numbers, not be a {type(logit_bias).__name__}")
    for token, bias in logit_bias.items():
        check_number("logit_bias", token, lambda value: 0 <= value <= _INT32.max, "a token id", whole=True)
        check_number(f"logit_bias[{token}]", bias, lambda value: -100 <= value <= 100, "in [-100, 100]")


def _schema_text(schema: object) -> str:
    if isinstance(schema, str):
        return schema
    if isinstance(schema, type) and callable(of_model := getattr(schema, "model_json_schema", None)):
        schema = of_model()
    if not isinstance(schema, Mapping | bool):
        raise TypeError(f"json_schema: must be a dict, JSON text or a pydantic model, not {schema!r:.80}")
    try:
        return json.dumps(dict(schema) if isinstance(schema, Mapping) else schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"is not JSON: {error}", field="json_schema") from error


def _choices(choice: object) -> list[str]:
    if isinstance(choice, str) or not isinstance(choice, Sequence) or not all(isinstance(c, str) for c in choice):
        raise TypeError("choice: must be a list of strings")
    if not choice or not all(choice):
        raise InvalidInputError("must be strings that are not empty", field="choice")
    return list(choice)
