"""Tokens that a request wants scored at positions of its prompt, and their log-probabilities in the same layout.

A table of T − 1 rows, row i about position i + 1, dense or with its cells listed (CSR). Here it becomes a list of
cells by position, which is all that an engine knows of it.

Shapes: T prompt tokens, M cells that ask for something.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from farstep_proto.errors import InvalidInput
from farstep_proto.tensors import IntArray, ids_from_bytes
from farstep_proto.v1 import sampling_pb2 as pb

_FIELD = "target_prompt_logprobs"
_LongArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PromptTargets:
    """`tokens` [M] are to be scored at `positions` [M], which ascend; `places` [M] is where each stands in `layout`."""

    positions: _LongArray
    tokens: IntArray
    places: _LongArray
    layout: pb.PromptTargets

    @classmethod
    def of(cls, message: pb.PromptTargets, *, num_prompt: int, vocab_size: int, most_values: int) -> PromptTargets:
        """Raises InvalidInput: not T − 1 rows, unknown tokens, no token at all, or more than `most_values` in all."""
        tokens = ids_from_bytes(message.token_ids, field=f"{_FIELD}.token_ids")
        if len(tokens) > most_values:
            raise InvalidInput(
                f"{len(tokens)} tokens for {num_prompt - 1} positions, at most {most_values}", field=_FIELD
            )
        rows = _rows_of(message, num_values=len(tokens), num_rows=num_prompt - 1)
        wrong = np.flatnonzero((tokens < -1) | (tokens >= vocab_size))
        if len(wrong):
            raise InvalidInput(
                f"token {tokens[wrong[0]]} is outside the vocabulary of {vocab_size}",
                field=f"{_FIELD}.token_ids[{wrong[0]}]",
            )
        places = np.flatnonzero(tokens >= 0)
        if not len(places):
            raise InvalidInput("it names no token; −1 asks for nothing", field=_FIELD)
        return cls(rows[places] + 1, tokens[places], places, message)

    def at(self, first: int, last: int) -> slice:
        """The cells of positions `first` … `last` − 1."""
        low, high = np.searchsorted(self.positions, [first, last])
        return slice(int(low), int(high))


@dataclass(frozen=True, slots=True, eq=False)
class TargetLogprobs:
    """`logprobs` [M], one for each cell of `targets`."""

    targets: PromptTargets
    logprobs: npt.NDArray[np.float32]

    def to_proto(self) -> pb.TargetLogprobs:
        layout = self.targets.layout
        values = np.zeros(len(layout.token_ids) // 4, dtype="<f4")
        values[self.targets.places] = self.logprobs
        return pb.TargetLogprobs(
            k=layout.k, logprobs=values.tobytes(), crow_indices=layout.crow_indices, col_indices=layout.col_indices
        )


def _rows_of(message: pb.PromptTargets, *, num_values: int, num_rows: int) -> _LongArray:
    """The row in which each value stands."""
    if message.k < 1:
        raise InvalidInput(f"{message.k} columns", field=f"{_FIELD}.k")
    if not message.crow_indices and not message.col_indices:
        if num_values != num_rows * message.k:
            raise InvalidInput(
                f"{num_values} tokens do not fill {num_rows} rows, one for each prompt token but the first, "
                f"of {message.k}",
                field=f"{_FIELD}.token_ids",
            )
        return np.repeat(np.arange(num_rows), message.k)
    crow, columns = _longs(message.crow_indices, "crow_indices"), _longs(message.col_indices, "col_indices")
    if len(crow) != num_rows + 1:
        raise InvalidInput(
            f"{len(crow)} numbers for {num_rows} rows, one for each prompt token but the first, and one more",
            field=f"{_FIELD}.crow_indices",
        )
    if crow[0] != 0 or crow[-1] != num_values or (np.diff(crow) < 0).any():
        raise InvalidInput(f"they do not ascend from 0 to the {num_values} tokens", field=f"{_FIELD}.crow_indices")
    if len(columns) != num_values or ((columns < 0) | (columns >= message.k)).any():
        raise InvalidInput(
            f"not one number from 0 to {message.k - 1} for each of {num_values} tokens", field=f"{_FIELD}.col_indices"
        )
    return np.repeat(np.arange(num_rows), np.diff(crow))


def _longs(data: bytes, name: str) -> _LongArray:
    if len(data) % 8:
        raise InvalidInput(f"{len(data)} bytes are not a whole number of int64", field=f"{_FIELD}.{name}")
    return np.frombuffer(data, dtype="<i8")
