"""Contexts on their way: computed in chunks between the steps of what runs, until sequences can go on from them.

What is there already in the prefix cache is copied. Where the chunks end makes no difference to any number.

Shapes: T positions, D hidden size, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from farstep_model.load import BaseModel
from farstep_sampler.engines.kv_rows import columns_for
from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.engines.parts import ChunkPart
from farstep_sampler.engines.prefix_cache import PrefixCache
from farstep_sampler.scheduler import Join

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
        """Makes room, and takes over what is known. Of a prompt, what is looked at is computed."""
        num_tokens = len(self.join.context)
        if not num_tokens:
            return
        self.arrays = [array[0] for array in shape.zeros(1, columns_for(num_tokens + CHUNK_MULTIPLE))]
        group = self.join.group
        if group.is_mixed:
            return
        known = self.join.context
        if not self.join.is_resumed and (first := group.job.first_looked) is not None:
            known = known[: first - 1]  # what is asked of a position comes out of the token before it
        self.num_done = prefixes.read(self.root, known, self.arrays)
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
        self.context.join.group.look.take(hidden_ND, first=self.context.num_done + 1, base=base)

    @property
    def is_looked_at(self) -> bool:
        join, first = self.context.join, self.context.join.group.job.first_looked
        return first is not None and not join.is_resumed and first <= self.context.num_done + self.num_real
