"""Contexts computed from nothing: their keys and values, and what a request asks about its prompt.

A context is padded on the right. Under a causal mask nothing before the padding sees it, so that each is
computed as it would be alone.

Shapes: B contexts, T positions, D hidden size, N tokens, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from farstep_model.load import BaseModel
from farstep_model.logprobs import token_logprobs, topk_logprobs
from farstep_sampler.engines.adapter_table import AdapterTable
from farstep_sampler.engines.kv_rows import Prefix
from farstep_sampler.result import FloatArray, Topk
from farstep_sampler.scheduler import Join

# Widths for which a context's numbers on CPU are the same to the bit whatever width the others ask for
# (measured, as the sizes in `kv_rows`).
_WIDTH_MULTIPLE = 16
_LEAST_WIDTH = 32


@dataclass(frozen=True, slots=True, eq=False)
class PromptPass:
    """What came of one context. The log-probabilities are None where they were not asked for."""

    prefix: Prefix
    logprobs: FloatArray | None = None
    topk: Topk | None = None


def prefill(joins: list[Join], *, base: BaseModel, adapters: AdapterTable) -> list[PromptPass]:
    """Computes the contexts of a few joins in one pass, each with its own adapter."""
    longest = max(len(join.context) for join in joins)
    if longest == 0:
        return [_finish(join, Prefix([], []), None, base, adapters) for join in joins]
    ids_BT = _padded(
        [join.context for join in joins], max(_LEAST_WIDTH, -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE)
    )
    cache = DynamicCache()
    with adapters.active(torch.tensor([join.group.slot for join in joins])):
        hidden_BTD = base.hidden_states(ids_BT.to(base.device), past_key_values=cache, use_cache=True)
    return [
        _finish(join, take_prefix(cache, index, len(join.context)), hidden_BTD[index], base, adapters)
        for index, join in enumerate(joins)
    ]


def take_prefix(cache: DynamicCache, index: int, num_tokens: int) -> Prefix:
    """One context's part of a pass. A copy, so that the padded batch can go."""
    return Prefix(
        [layer.keys[index, :, :num_tokens].clone() for layer in cache.layers],
        [layer.values[index, :, :num_tokens].clone() for layer in cache.layers],
    )


def _padded(contexts: list[list[int]], width: int) -> Tensor:
    return torch.tensor([context + [0] * (width - len(context)) for context in contexts])


def _finish(
    join: Join, prefix: Prefix, hidden_TD: Tensor | None, base: BaseModel, adapters: AdapterTable
) -> PromptPass:
    job = join.group.job
    if not job.looks_at_prompt or join.is_resumed:
        return PromptPass(prefix)
    num_prompt = len(job.prompt)
    logprobs = np.full(num_prompt, np.nan, dtype=np.float32)
    topk = Topk(
        np.full((num_prompt, job.num_prompt_topk), -1, dtype=np.int32),
        np.full((num_prompt, job.num_prompt_topk), np.nan, dtype=np.float32),
    )
    if hidden_TD is not None and num_prompt > 1:
        hidden_ND = hidden_TD[: num_prompt - 1]
        with adapters.active(torch.tensor([join.group.slot])):
            if job.wants_prompt_logprobs:
                targets_N = torch.tensor(job.prompt[1:].tolist(), device=base.device)
                logprobs[1:] = token_logprobs(base, hidden_ND, targets_N)[0].cpu().numpy()
            if job.num_prompt_topk:
                ids_NK, best_NK = topk_logprobs(base, hidden_ND, job.num_prompt_topk)
                topk.ids[1:], topk.logprobs[1:] = ids_NK.cpu().numpy(), best_NK.cpu().numpy()
    return PromptPass(prefix, logprobs if job.wants_prompt_logprobs else None, topk if job.num_prompt_topk else None)
