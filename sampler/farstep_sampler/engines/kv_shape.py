"""What a model keeps for each token: the shapes of its keys and values, layer by layer, and the memory they take."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from farstep_model.load import BaseModel

_CPU_SHARE = 0.25  # of all memory: other processes live here too
_GPU_SHARE = 0.6  # of what is free once the weights are there


@dataclass(frozen=True, slots=True)
class KVShape:
    """(heads, head size) of the keys of each layer, then of the values: one array each wherever tokens are kept."""

    heads: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    @torch.no_grad()
    def of(cls, base: BaseModel) -> KVShape:
        """Found out by computing one token."""
        cache = DynamicCache()
        ids_BT = torch.zeros(1, 1, dtype=torch.long, device=base.device)
        base.hidden_states(ids_BT, past_key_values=cache, use_cache=True)
        arrays = [layer.keys for layer in cache.layers] + [layer.values for layer in cache.layers]
        return cls(tuple((a.shape[1], a.shape[3]) for a in arrays), arrays[0].dtype, arrays[0].device)

    @property
    def num_layers(self) -> int:
        return len(self.heads) // 2

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return sum(num_heads * size for num_heads, size in self.heads) * self.dtype.itemsize

    def zeros(self, num_rows: int, num_tokens: int) -> list[Tensor]:
        """An array [rows, H, tokens, D] for each of `heads`. Zeros, because masked columns must be finite numbers."""
        return [
            torch.zeros(num_rows, num_heads, num_tokens, size, dtype=self.dtype, device=self.device)
            for num_heads, size in self.heads
        ]


def cache_budget(base: BaseModel, *, max_rows: int) -> int:
    """Tokens that fit into a share of memory, at most `max_rows` whole contexts."""
    if base.device.type == "cuda":
        num_bytes = _GPU_SHARE * torch.cuda.mem_get_info(base.device)[0]
    else:
        num_bytes = _CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(int(num_bytes) // KVShape.of(base).token_bytes, max_rows * base.max_seq_len))
