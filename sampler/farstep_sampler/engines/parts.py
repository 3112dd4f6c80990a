"""The two kinds of tokens in a pass: one more token of each running sequence, and a chunk of a prompt.

Shapes: n rows, Q query heads, H key heads, M queries that share a key head, T tokens of a chunk, S columns,
D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from farstep_sampler.engines.attention import Rule, visible
from farstep_sampler.engines.kv_rows import Slab, columns_for


@dataclass(slots=True, eq=False)
class RowsPart:
    """The token at `positions_n` of each of the first rows of a slab; `longest` is the largest of them."""

    slab: Slab
    positions_n: Tensor
    longest: int
    _rows_n: Tensor = field(init=False)
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows_n = torch.arange(self.num_tokens, device=self.positions_n.device)

    @property
    def num_tokens(self) -> int:
        return len(self.positions_n)

    def write(self, layer: int, key_nHD: Tensor, value_nHD: Tensor) -> None:
        arrays = self.slab.arrays
        arrays[layer][self._rows_n, :, self.positions_n] = key_nHD
        arrays[layer + len(arrays) // 2][self._rows_n, :, self.positions_n] = value_nHD

    def attend(self, layer: int, query_nQD: Tensor, rule: Rule) -> Tensor:
        arrays, num_columns = self.slab.arrays, columns_for(self.longest + 1)
        keys_nHSD = arrays[layer][: self.num_tokens, :, :num_columns]
        values_nHSD = arrays[layer + len(arrays) // 2][: self.num_tokens, :, :num_columns]
        query_nHMD = query_nQD.unflatten(1, (keys_nHSD.shape[1], -1))
        if rule.window not in self._biases:
            self._biases[rule.window] = visible(self.positions_n, num_columns, rule.window, dtype=query_nQD.dtype)[
                :, None, None
            ]
        return rule.attend(query_nHMD, keys_nHSD, values_nHSD, self._biases[rule.window]).flatten(1, 2)


@dataclass(slots=True, eq=False)
class ChunkPart:
    """Tokens `start` … `start + num_tokens` of one context, whose arrays [H, T, D] have room for them."""

    arrays: list[Tensor]
    start: int
    num_tokens: int
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def write(self, layer: int, key_THD: Tensor, value_THD: Tensor) -> None:
        chunk = slice(self.start, self.start + self.num_tokens)
        self.arrays[layer][:, chunk] = key_THD.transpose(0, 1)
        self.arrays[layer + len(self.arrays) // 2][:, chunk] = value_THD.transpose(0, 1)

    def attend(self, layer: int, query_TQD: Tensor, rule: Rule) -> Tensor:
        num_columns = columns_for(self.start + self.num_tokens)
        keys_HSD = self.arrays[layer][:, :num_columns]
        values_HSD = self.arrays[layer + len(self.arrays) // 2][:, :num_columns]
        query_HMTD = query_TQD.unflatten(1, (len(keys_HSD), -1)).permute(1, 2, 0, 3)
        shared = query_HMTD.shape[1]
        if rule.window not in self._biases:
            positions_T = torch.arange(self.start, self.start + self.num_tokens, device=query_TQD.device)
            self._biases[rule.window] = visible(positions_T, num_columns, rule.window, dtype=query_TQD.dtype).repeat(
                shared, 1
            )
        query = query_HMTD.flatten(1, 2)[None]
        out = rule.attend(query, keys_HSD[None], values_HSD[None], self._biases[rule.window])[0]
        out_THMD = out.view(*query_HMTD.shape[:3], -1).permute(2, 0, 1, 3)
        return out_THMD.flatten(1, 2)
