"""Micro-batches: everything once, within the budget, little padding."""

import random

import pytest

from farstep_model.batching import micro_batches


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
