"""Penalties on what a text has said already, and the count of it.

    logit / repetition where it is positive, logit · repetition elsewhere   (tokens of the prompt or generated)
    − frequency · times generated
    − presence, if generated at all

The first is the CTRL paper's (arXiv:1909.05858, section 4.1) as transformers and vLLM apply it, the others are those of
the OpenAI API. A sequence counts its own tokens as they come; nothing is counted again when it changes its row,
waits, or goes on.

Shapes: N distinct tokens that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from farstep_proto.tensors import IntArray

_LEAST_ROOM = 32


@dataclass(frozen=True, slots=True, eq=False)
class Penalties:
    """`prompt_tokens` are the prompt's distinct tokens, ascending; none where only generated ones count."""

    presence: float
    frequency: float
    repetition: float
    prompt_tokens: IntArray

    @property
    def change_anything(self) -> bool:
        return self.presence != 0 or self.frequency != 0 or self.repetition != 1


class SeenTokens:
    """The distinct tokens of one sequence, and how often each was generated: the prompt's first, then as they came."""

    def __init__(self, prompt_tokens: IntArray) -> None:
        self._prompt_tokens = prompt_tokens
        self._num = len(prompt_tokens)
        self._ids = np.empty(self._num + _LEAST_ROOM, dtype=np.int64)
        self._ids[: self._num] = prompt_tokens
        self._counts = np.zeros(len(self._ids), dtype=np.float32)
        self._places: dict[int, int] = {}  # of generated tokens

    def add(self, token: int) -> None:
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = self._place(token)
        self._counts[place] += 1

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids[: self._num]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        return self._counts[: self._num]

    def _place(self, token: int) -> int:
        place = int(np.searchsorted(self._prompt_tokens, token))
        if place < len(self._prompt_tokens) and self._prompt_tokens[place] == token:
            return place
        if self._num == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[self._num] = token
        self._num += 1
        return self._num - 1


def penalised(logits_N: Tensor, counts_N: Tensor, *, presence: Tensor, frequency: Tensor, repetition: Tensor) -> Tensor:
    """The logits of seen tokens after their penalties; every argument is [N]."""
    scaled_N = torch.where(logits_N > 0, logits_N / repetition, logits_N * repetition)
    return scaled_N - frequency * counts_N - presence * (counts_N > 0)
