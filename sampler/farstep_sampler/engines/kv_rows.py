"""The keys and values of running sequences: row r of every layer is one sequence, its token t at column t.

Rows have their own lengths and no padding to the left, so that a sequence joins, leaves or moves without
touching another. The arrays grow with what is asked of them, never beyond the budget. They start as zeros:
masked columns are multiplied with weight 0, which only finite numbers survive.

Shapes: R rows, H heads, S columns, D head size, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from farstep_sampler.scheduler import Move

# Sizes that a step is rounded up to. On CPU the matrix products of a row then come out the same to the bit
# whatever else is in the batch (measured: MKL changes its order of summation below 12 rows unless they are a
# multiple of 4, attention unless the columns are a multiple of its vector width).
ROW_MULTIPLE = 8
COLUMN_MULTIPLE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The keys and values [H, T, D] of one context in every layer; what several sequences begin with."""

    keys: list[Tensor]
    values: list[Tensor]


class KVRows(Cache):  # type: ignore[misc]  # transformers has no types
    """A transformers cache for decoding one token a row.

    Args:
        budget_tokens: most rows × columns; at least one row of the longest sequence.
    """

    def __init__(self, *, budget_tokens: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.budget_tokens = budget_tokens
        self._device = device
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._capacity = (0, 0)
        self._rows_R = torch.zeros(0, dtype=torch.long)
        self._positions_R = self._rows_R
        self._num_columns = 0

    def fits(self, num_rows: int, num_tokens: int) -> bool:
        return num_rows * _round_up(num_tokens, COLUMN_MULTIPLE) <= self.budget_tokens or num_rows == 1

    def padded_rows(self, num_rows: int, num_tokens: int) -> int:
        """How many rows a step computes: a round number, where the budget allows the empty ones."""
        padded = _round_up(num_rows, ROW_MULTIPLE)
        return padded if self.fits(padded, num_tokens) else num_rows

    def begin_step(self, positions_R: Tensor, *, num_tokens: int) -> int:
        """Says where the tokens of the coming pass stand; the number of columns that attention sees."""
        self._num_columns = _round_up(num_tokens, COLUMN_MULTIPLE)
        self._reserve(len(positions_R), self._num_columns)
        self._positions_R = positions_R
        self._rows_R = torch.arange(len(positions_R), device=self._device)
        return self._num_columns

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Called by the model in each layer: writes one token a row, gives back all of them."""
        keys, values = self._layer(layer_idx, key_states, value_states)
        keys[self._rows_R, :, self._positions_R] = key_states[:, :, 0]
        values[self._rows_R, :, self._positions_R] = value_states[:, :, 0]
        num_rows, num_columns = len(self._rows_R), self._num_columns
        return keys[:num_rows, :, :num_columns], values[:num_rows, :, :num_columns]

    def write(self, rows: range, prefix: Prefix) -> None:
        """Puts a context into rows."""
        if not prefix.keys or not prefix.keys[0].shape[1]:
            return
        num_tokens = prefix.keys[0].shape[1]
        self._num_columns = max(self._num_columns, _round_up(num_tokens, COLUMN_MULTIPLE))  # longer rows keep theirs
        self._reserve(rows.stop, self._num_columns)
        for index, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            keys, values = self._layer(index, key[None], value[None])
            keys[rows.start : rows.stop, :, :num_tokens] = key
            values[rows.start : rows.stop, :, :num_tokens] = value

    def move(self, moves: Sequence[Move], *, num_tokens: int) -> None:
        """Copies rows of up to `num_tokens` tokens; no target is a source."""
        if not moves:
            return
        sources = torch.tensor([move.source for move in moves], device=self._device)
        targets = torch.tensor([move.target for move in moves], device=self._device)
        for stored in (*self._keys.values(), *self._values.values()):
            live = stored[:, :, :num_tokens]
            live[targets] = live[sources]

    def clear(self) -> None:
        """Gives all memory back; for when nothing runs."""
        self._keys.clear()
        self._values.clear()
        self._capacity = (0, 0)
        self._num_columns = 0

    def clear_row(self, row: int) -> None:
        """Removes numbers that are not finite, so that they reach no later sequence."""
        for stored in (*self._keys.values(), *self._values.values()):
            stored[row] = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._num_columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._num_columns, 0

    def _layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if index not in self._keys:
            self._keys[index] = key.new_zeros(self._capacity[0], key.shape[1], self._capacity[1], key.shape[3])
            self._values[index] = value.new_zeros(self._capacity[0], value.shape[1], self._capacity[1], value.shape[3])
        return self._keys[index], self._values[index]

    def _reserve(self, num_rows: int, num_columns: int) -> None:
        rows, columns = self._capacity
        if num_rows <= rows and num_columns <= columns:
            return
        if num_columns > columns:
            columns = max(num_columns, min(2 * columns, self.budget_tokens // max(1, num_rows)))
        if num_rows > rows:
            rows = max(num_rows, min(2 * rows, self.budget_tokens // columns))
        if rows * columns > self.budget_tokens:
            rows, columns = num_rows, num_columns
        self._capacity = (rows, columns)
        for stores in (self._keys, self._values):
            for index, old in stores.items():
                stores[index] = _resized(old, rows, columns)


def _resized(old: Tensor, num_rows: int, num_columns: int) -> Tensor:
    new = old.new_zeros(num_rows, old.shape[1], num_columns, old.shape[3])
    kept_rows, kept_columns = min(num_rows, old.shape[0]), min(num_columns, old.shape[2])
    new[:kept_rows, :, :kept_columns] = old[:kept_rows, :, :kept_columns]
    return new


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
