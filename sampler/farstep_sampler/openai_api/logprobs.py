"""Log-probabilities in the forms that the API has: a list of objects for chats, parallel lists for completions.

JSON has no infinity: what is impossible is left out of candidates, and said as -9999 elsewhere, as vLLM does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from farstep_proto.v1 import sampling_pb2 as pb

Candidates = list[tuple[int, float]]
Name = Callable[[int], str]

_LEAST = -9999.0


@dataclass(frozen=True, slots=True)
class TokenScores:
    """A token of a text, its log-probability, and the likeliest candidates in its place.

    Both are None and empty where nothing precedes the token.
    """

    token: int
    logprob: float | None
    candidates: Candidates


def scores_of(tokens: Sequence[int], logprobs: bytes, topk: pb.TopkLogprobs | None) -> list[TokenScores]:
    """N tokens with their log-probabilities [N] and candidates [N, K]; NaN stands for none."""
    values = np.frombuffer(logprobs, "<f4").tolist()
    rows = _rows(topk) if topk is not None and topk.k else [[] for _ in tokens]
    return [
        TokenScores(token, None if math.isnan(value) else max(value, _LEAST), row)
        for token, value, row in zip(tokens, values, rows, strict=True)
    ]


def chat_logprobs(scores: Sequence[TokenScores], name: Name) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        text = name(token)
        # A token that is part of a character says no text, and its bytes are not known here.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

    return {
        "content": [
            one(score.token, _LEAST if score.logprob is None else score.logprob)
            | {"top_logprobs": [one(token, logprob) for token, logprob in score.candidates]}
            for score in scores
        ],
        "refusal": None,
    }


def completion_logprobs(scores: Sequence[TokenScores], name: Name, *, offset: int) -> dict[str, Any]:
    """Args:
    offset: characters before the first token, in the text of its choice.
    """
    tokens = [name(score.token) for score in scores]
    offsets = [offset]
    for text in tokens[:-1]:
        offsets.append(offsets[-1] + len(text))
    return {
        "tokens": tokens,
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [_by_name(score, name) for score in scores],
        "text_offset": offsets[: len(tokens)],
    }


def prompt_logprobs(scores: Sequence[TokenScores], name: Name) -> list[dict[str, Any] | None]:
    """vLLM's form: for each token of the prompt its own and its candidates' by id, null for the first."""
    rows: list[dict[str, Any] | None] = []
    for score in scores:
        if score.logprob is None:
            rows.append(None)
            continue
        ranks = {token: rank for rank, (token, _) in enumerate(score.candidates, start=1)}
        logprobs = {score.token: score.logprob, **dict(score.candidates)}
        rows.append(
            {
                str(token): {"logprob": logprob, "rank": ranks.get(token), "decoded_token": name(token)}
                for token, logprob in logprobs.items()
            }
        )
    return rows


def _by_name(score: TokenScores, name: Name) -> dict[str, float] | None:
    """The candidates and the token itself; several tokens that say the same are one, the likeliest."""
    if score.logprob is None:
        return None
    named: dict[str, float] = {}
    for token, logprob in [*score.candidates, (score.token, score.logprob)]:
        named.setdefault(name(token), logprob)
    return named


def _rows(topk: pb.TopkLogprobs) -> list[Candidates]:
    ids_NK = np.frombuffer(topk.token_ids, "<i4").reshape(-1, topk.k).tolist()
    logprobs_NK = np.frombuffer(topk.logprobs, "<f4").reshape(-1, topk.k).tolist()
    return [
        [(token, value) for token, value in zip(ids_K, values_K, strict=True) if token >= 0 and math.isfinite(value)]
        for ids_K, values_K in zip(ids_NK, logprobs_NK, strict=True)
    ]
