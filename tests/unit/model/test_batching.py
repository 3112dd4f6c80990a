"""Micro-batches: everything once, within the budget, little padding."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farstep_model.batching import micro_batches, packed_batches


@pytest.mark.parametrize("budget", [1, 64, 500, 10_000])
def test_everything_is_there_once_and_within_the_budget(budget: int) -> None:
    rng = random.Random(1)
    lengths = [rng.randint(1, 200) for _ in range(100)]
    groups = micro_batches(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(100))
    for group in groups:
        assert len(group) == 1 or max(lengths[index] for index in group) * len(group) <= budget


def test_like_lengths_go_together_longest_first() -> None:
    assert micro_batches([2, 9, 3, 8, 2], 16) == [[1], [3, 2], [0, 4]]


def test_a_sequence_above_the_budget_goes_alone() -> None:
    assert micro_batches([5, 100, 5], 10) == [[1], [0, 2]]


def test_nothing_needs_no_batch() -> None:
    assert micro_batches([], 10) == []


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="token_budget 0"):
        micro_batches([1], 0)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_packed_batches_hold_everything_once_and_keep_to_the_budget(lengths: list[int], token_budget: int) -> None:
    groups = packed_batches(lengths, token_budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert groups == packed_batches(list(lengths), token_budget)
    for group in groups:
        assert len(group) == 1 or sum(lengths[index] for index in group) <= token_budget
    for one, following in pairwise(groups):  # no group ends early
        assert sum(lengths[index] for index in one) + lengths[following[0]] > token_budget
