"""The data of the benchmark: random tokens, the same in every process for the same kind and seed."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Kind = Literal["equal", "mixed", "tiny", "small", "large"]
Sequence = npt.NDArray[np.int64]

EQUAL_LENGTH = 128
SHORTEST, LONGEST = 16, 512
TINY_LENGTH = 8
SMALL_LENGTH = 32
NUM_SPECIAL_TOKENS = 3


def draw_batch(kind: Kind, *, seed: int, num_sequences: int, vocab_size: int) -> list[Sequence]:
    """Sequences of length T + 1: a model sees the first T tokens and predicts the last T.

    `mixed` draws T uniformly from 16 to 512 anew for every seed; `tiny` is a single sequence, `small` two; `large`
    is as many as asked for of the longest.
    """
    rng = np.random.default_rng(seed)
    match kind:
        case "equal":
            lengths = np.full(num_sequences, EQUAL_LENGTH)
        case "mixed":
            lengths = rng.integers(SHORTEST, LONGEST + 1, num_sequences)
        case "tiny":
            lengths = np.full(1, TINY_LENGTH)
        case "small":
            lengths = np.full(2, SMALL_LENGTH)
        case "large":
            lengths = np.full(num_sequences, LONGEST)
    return [rng.integers(NUM_SPECIAL_TOKENS, vocab_size, length + 1) for length in lengths]


def num_tokens(batch: list[Sequence]) -> int:
    return sum(len(sequence) - 1 for sequence in batch)
