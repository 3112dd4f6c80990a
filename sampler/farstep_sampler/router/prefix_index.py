"""Where beginnings of prompts were sent before: a bounded tree of blocks of tokens.

A node is named by the hash of all tokens up to it, so that the tree is one dictionary, the least recently used
node leaving first. It is a hint about caches that it cannot see: a hash that collides, or a cache that was emptied,
costs a little speed and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from farstep_proto.tensors import IntArray

BLOCK = 16
_MOST_NODES = 1 << 16
_MOST_BLOCKS = 512  # of one prompt: what lies beyond 8,192 tokens changes no choice
_MOST_URLS = 8  # remembered at one node, the latest


class PrefixIndex:
    def __init__(self, *, max_nodes: int = _MOST_NODES) -> None:
        self._max_nodes = max_nodes
        self._nodes: OrderedDict[int, dict[str, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def lengths(self, source: str, tokens_T: IntArray) -> dict[str, int]:
        """url -> how many of a prompt's first tokens were sent there, in whole blocks."""
        found: dict[str, int] = {}
        for depth, node in enumerate(_nodes_of(source, tokens_T), start=1):
            urls = self._nodes.get(node)
            if urls is None:
                break
            found |= dict.fromkeys(urls, depth * BLOCK)
        return found

    def record(self, source: str, tokens_T: IntArray, url: str) -> None:
        """Notes that a prompt was sent somewhere."""
        for node in _nodes_of(source, tokens_T):
            urls = self._nodes.setdefault(node, {})
            urls.pop(url, None)
            urls[url] = None
            if len(urls) > _MOST_URLS:
                del urls[next(iter(urls))]
            self._nodes.move_to_end(node)
        while len(self._nodes) > self._max_nodes:
            self._nodes.popitem(last=False)


def _nodes_of(source: str, tokens_T: IntArray) -> Iterator[int]:
    data = tokens_T.astype("<i4", copy=False).tobytes()
    node = hash(source)
    for start in range(0, min(len(tokens_T) // BLOCK, _MOST_BLOCKS) * BLOCK * 4, BLOCK * 4):
        node = hash((node, data[start : start + BLOCK * 4]))
        yield node
