"""Contexts on their way: computed in chunks between the steps of what runs, until sequences can go on from them.

What is there already in the prefix cache is copied. Where the chunks end makes no difference to any number.

Shapes: T positions, D hidden size, N tokens, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from farstep_model.load import BaseModel
from farstep_model.logprobs import token_logprobs, topk_logprobs
from farstep_sampler.engines.kv_rows import columns_for
from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.engines.parts import ChunkPart
from farstep_sampler.engines.prefix_cache import PrefixCache
from farstep_sampler.result import Topk
from farstep_sampler.scheduler import Group, Join

CHUNK_MULTIPLE = 4  # tokens; the last chunk is filled up


@dataclass(slots=True, eq=False)
class Context:
    """The context of a join, of which the first `num_done` tokens are computed; keys and values [H, T, D] in `arrays`.

    `root` is that of the weights it began with, `reserved` what it and its rows take of the cache's budget.
    """

    join: Join
    root: int
    reserved: int
    arrays: list[Tensor] = field(default_factory=list)
    num_done: int = 0

    @property
    def num_left(self) -> int:
        return len(self.join.context) - self.num_done

    def begin(self, shape: KVShape, prefixes: PrefixCache) -> None:
        """Makes room, and takes over what is known. A prompt that is looked at is computed as a whole."""
        num_tokens = len(self.join.context)
        if not num_tokens:
            return
        self.arrays = [array[0] for array in shape.zeros(1, columns_for(num_tokens + CHUNK_MULTIPLE))]
        group = self.join.group
        if group.is_mixed or (group.job.looks_at_prompt and not self.join.is_resumed):
            return
        self.num_done = prefixes.read(self.root, self.join.context, self.arrays)
        if not self.join.is_resumed and not group.num_cached:
            group.num_cached = self.num_done

    def chunk(self, num_tokens: int) -> Chunk:
        """The next tokens, at most that many, which is a multiple of CHUNK_MULTIPLE."""
        taken = self.join.context[self.num_done : self.num_done + num_tokens]
        padding = -len(taken) % CHUNK_MULTIPLE
        positions = list(range(self.num_done, self.num_done + len(taken)))
        part = ChunkPart(self.arrays, self.num_done, len(taken) + padding)
        # Padding stands where the last token does, which every model has an embedding for.
        return Chunk(self, part, taken + [0] * padding, positions + positions[-1:] * padding, len(taken))


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Part of a context in a pass: `num_real` tokens and their padding."""

    context: Context
    part: ChunkPart
    tokens: list[int]
    positions: list[int]
    num_real: int

    def look(self, hidden_ND: Tensor, base: BaseModel) -> None:
        """Notes what a request asks about its prompt; to be called with the group's adapter active."""
        group, first = self.context.join.group, self.context.num_done + 1
        last = first + self.num_real
        if group.job.wants_prompt_logprobs:
            assert group.prompt_logprobs is not None
            targets_N = torch.tensor(group.job.prompt[first:last].tolist(), device=base.device)
            group.prompt_logprobs[first:last] = token_logprobs(base, hidden_ND, targets_N)[0].cpu().numpy()
        if group.job.num_prompt_topk:
            assert group.prompt_topk is not None
            ids_NK, best_NK = topk_logprobs(base, hidden_ND, group.job.num_prompt_topk)
            group.prompt_topk.ids[first:last] = ids_NK.cpu().numpy()
            group.prompt_topk.logprobs[first:last] = best_NK.cpu().numpy()

    @property
    def is_looked_at(self) -> bool:
        join = self.context.join
        return join.group.job.looks_at_prompt and not join.is_resumed


def prepare_look(group: Group) -> None:
    """Makes the arrays that `Chunk.look` fills; position 0 has no distribution."""
    num_prompt, job = len(group.job.prompt), group.job
    if job.wants_prompt_logprobs:
        group.prompt_logprobs = np.full(num_prompt, np.nan, dtype=np.float32)
    if job.num_prompt_topk:
        ids = np.full((num_prompt, job.num_prompt_topk), -1, dtype=np.int32)
        group.prompt_topk = Topk(ids, np.full((num_prompt, job.num_prompt_topk), np.nan, dtype=np.float32))
