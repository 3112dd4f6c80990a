"""How many tokens the cache may hold on this machine."""

from __future__ import annotations

import os

import torch
from transformers import DynamicCache

from farstep_model.load import BaseModel

_CPU_SHARE = 0.25  # of all memory: other processes live here too
_GPU_SHARE = 0.6  # of what is free once the weights are there


def cache_budget(base: BaseModel, *, max_rows: int) -> int:
    """Tokens that fit into a share of memory, at most `max_rows` whole contexts."""
    if base.device.type == "cuda":
        num_bytes = _GPU_SHARE * torch.cuda.mem_get_info(base.device)[0]
    else:
        num_bytes = _CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(int(num_bytes) // token_bytes(base), max_rows * base.max_seq_len))


@torch.no_grad()
def token_bytes(base: BaseModel) -> int:
    """Bytes of keys and values that one token adds, over all layers; measured on one token."""
    cache = DynamicCache()
    ids_BT = torch.zeros(1, 1, dtype=torch.long, device=base.device)
    base.hidden_states(ids_BT, past_key_values=cache, use_cache=True)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
