"""Keys and values of token prefixes that may come again: of earlier prompts, and of what was sampled after them.

Kept in blocks of a few tokens, found by the tokens themselves from the start of the sequence: block by block, each
under (its predecessor, its tokens), so that equal keys mean equal prefixes and never merely equal hashes. The first
predecessor stands for the weights that computed it and who asked: what one version left is never found by another, nor
what one project left.

A hit is copied, not shared: a block is free to go the moment it has been read. The least recently used go first; a
block is always used later than what follows it, so nothing is kept that cannot be reached.

Shapes: H heads, T tokens, D head size, P blocks of the pool.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from farstep_sampler.engines.kv_shape import KVShape

BLOCK_TOKENS = 16

_Key = tuple[int, tuple[int, ...]]  # the predecessor's serial number, the block's tokens


@dataclass(frozen=True, slots=True)
class _Block:
    serial: int  # never used twice
    place: int  # in the pool


class PrefixCache:
    """Args:
    budget_tokens: most tokens kept; the pool grows with what is put in.
    """

    def __init__(self, shape: KVShape, *, budget_tokens: int) -> None:
        self._shape = shape
        self._most_blocks = budget_tokens // BLOCK_TOKENS
        self._pool = shape.zeros(0, BLOCK_TOKENS)  # [P, H, BLOCK_TOKENS, D]
        self._blocks: OrderedDict[_Key, _Block] = OrderedDict()  # least recently used first
        self._free: list[int] = []
        self._num_serials = 0

    @property
    def num_tokens(self) -> int:
        return len(self._blocks) * BLOCK_TOKENS

    def new_root(self) -> int:
        """What prefixes begin from that share nothing with any that are here."""
        self._num_serials += 1
        return self._num_serials

    def drop(self, roots: Iterable[int]) -> None:
        """Forgets all that begins from these roots."""
        reached = set(roots)
        for key in reversed(list(self._blocks)):  # predecessors first
            if key[0] in reached:
                block = self._blocks.pop(key)
                reached.add(block.serial)
                self._free.append(block.place)

    def read(self, root: int, tokens: Sequence[int], into: Sequence[Tensor]) -> int:
        """Copies the longest known prefix of `tokens` into arrays [H, T, D]; how many tokens it has."""
        path = self._walk(root, tokens)
        if not path:
            return 0
        places_N = self._index([self._blocks[key].place for key in path])
        num_tokens = len(path) * BLOCK_TOKENS
        for pool, array in zip(self._pool, into, strict=True):
            array[:, :num_tokens] = pool[places_N].transpose(0, 1).flatten(1, 2)
        return num_tokens

    def write(self, root: int, tokens: Sequence[int], arrays: Sequence[Tensor]) -> None:
        """Keeps what the whole blocks of `tokens` computed to, [H, T, D]; only as much as there is room for."""
        path = self._walk(root, tokens)
        first = len(path) * BLOCK_TOKENS
        places = self._take(len(tokens) // BLOCK_TOKENS - len(path), keep=len(path))
        if not places:
            return
        places_N = self._index(places)
        last = first + len(places) * BLOCK_TOKENS
        for pool, array in zip(self._pool, arrays, strict=True):
            pool[places_N] = array[:, first:last].unflatten(1, (len(places), BLOCK_TOKENS)).transpose(0, 1)
        parent = self._blocks[path[-1]].serial if path else root
        new: list[tuple[_Key, _Block]] = []
        for start, place in zip(range(first, last, BLOCK_TOKENS), places, strict=True):
            block = _Block(self.new_root(), place)
            new.append(((parent, tuple(tokens[start : start + BLOCK_TOKENS])), block))
            parent = block.serial
        self._blocks.update(reversed(new))
        self._touch(path)

    def _walk(self, root: int, tokens: Sequence[int]) -> list[_Key]:
        """The known blocks that `tokens` begin with, which count as used now."""
        path: list[_Key] = []
        parent = root
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = parent, tuple(tokens[start : start + BLOCK_TOKENS])
            block = self._blocks.get(key)
            if block is None:
                break
            path.append(key)
            parent = block.serial
        self._touch(path)
        return path

    def _touch(self, path: list[_Key]) -> None:
        for key in reversed(path):
            self._blocks.move_to_end(key)

    def _take(self, count: int, *, keep: int) -> list[int]:
        """Up to `count` places, in place of anything but the `keep` blocks used last."""
        missing = count - len(self._free)
        if missing > 0:
            self._extend(missing)
        while len(self._free) < count and len(self._blocks) > keep:
            self._free.append(self._blocks.popitem(last=False)[1].place)
        return [self._free.pop() for _ in range(min(count, len(self._free)))]

    def _extend(self, num_blocks: int) -> None:
        old = self._pool[0].shape[0]
        size = min(self._most_blocks, max(2 * old, old + num_blocks))
        if size == old:
            return
        new = self._shape.zeros(size, BLOCK_TOKENS)
        for old_array, array in zip(self._pool, new, strict=True):
            array[:old] = old_array
        self._pool = new
        self._free += range(old, size)

    def _index(self, places: list[int]) -> Tensor:
        return torch.tensor(places, device=self._shape.device)
