"""The prefix cache against a plain list of everything that was ever put in."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.engines.prefix_cache import BLOCK_TOKENS, PrefixCache

SHAPE = KVShape(((2, 3), (2, 3)), torch.float32, torch.device("cpu"))
Tokens = list[int]


def arrays_of(root: int, tokens: Tokens) -> list[torch.Tensor]:
    """Numbers that depend on the weights and on every token so far, as keys and values do."""
    sums_T = torch.tensor([root * 1000.0 + sum(tokens[: i + 1]) * 7 + i for i in range(len(tokens))])
    return [sums_T[None, :, None].expand(2, -1, 3) + index for index in range(2)]


def read(cache: PrefixCache, root: int, tokens: Tokens) -> tuple[int, list[torch.Tensor]]:
    into = [array[0] for array in SHAPE.zeros(1, len(tokens))]
    return cache.read(root, tokens, into), into


# A small alphabet of blocks, so that sequences share beginnings and part later.
sequences = st.lists(st.integers(0, 2), max_size=6).map(lambda blocks: [b for b in blocks for _ in range(BLOCK_TOKENS)])


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(0, 10),
    actions=st.lists(st.tuples(st.sampled_from(["write", "read", "drop"]), st.integers(0, 1), sequences), max_size=30),
)
def test_what_is_read_is_what_these_weights_computed_for_these_tokens(
    budget: int, actions: list[tuple[str, int, Tokens]]
) -> None:
    cache = PrefixCache(SHAPE, budget_tokens=budget * BLOCK_TOKENS)
    roots = [cache.new_root(), cache.new_root()]
    written: list[tuple[int, Tokens]] = []
    for action, which, tokens in actions:
        root = roots[which]
        if action == "drop":
            cache.drop([root])
            roots[which] = cache.new_root()
            continue
        if action == "write":
            cache.write(root, tokens, arrays_of(root, tokens))
            written.append((root, tokens))
        found, into = read(cache, root, tokens)
        assert found <= max((_shared(tokens, t) for r, t in written if r == root), default=0)
        for expected, array in zip(arrays_of(root, tokens), into, strict=True):
            assert torch.equal(array[:, :found], expected[:, :found])
        assert cache.num_tokens <= budget * BLOCK_TOKENS
        if action == "write":
            assert found == min(len(tokens), budget * BLOCK_TOKENS)


def _shared(a: Tokens, b: Tokens) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count // BLOCK_TOKENS * BLOCK_TOKENS


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(SHAPE, budget_tokens=4 * BLOCK_TOKENS)
    root = cache.new_root()
    first, second, third = ([value] * 2 * BLOCK_TOKENS for value in (1, 2, 3))
    cache.write(root, first, arrays_of(root, first))
    cache.write(root, second, arrays_of(root, second))
    read(cache, root, first)
    cache.write(root, third, arrays_of(root, third))
    assert [read(cache, root, tokens)[0] for tokens in (first, second, third)] == [32, 0, 32]


def test_only_whole_blocks_are_kept() -> None:
    cache = PrefixCache(SHAPE, budget_tokens=1024)
    root = cache.new_root()
    tokens = list(range(BLOCK_TOKENS * 2 + 5))
    cache.write(root, tokens, arrays_of(root, tokens))
    assert read(cache, root, tokens)[0] == 2 * BLOCK_TOKENS
    assert read(cache, root, tokens[: BLOCK_TOKENS - 1])[0] == 0
