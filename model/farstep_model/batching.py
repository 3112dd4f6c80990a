"""What is computed together: sequences of like length, under a budget of padded tokens.

Sorting by length keeps padding small; it changes which sequences share a pass, and no number beyond rounding. The same
lengths always give the same plan. Packed sequences lie end to end and need no padding.
"""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Groups indices of sequences so that `longest × count` of each group is within the budget.

    Args:
        lengths: tokens of each sequence, at least 1.
        token_budget: padded tokens of a group; a sequence above it gets a group of its own.

    Returns:
        Groups of indices into `lengths`, longest first, each index once. The first group is thus the largest: a lack
        of memory shows at once.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget {token_budget} must be at least 1")
    groups: list[list[int]] = []
    longest = 0
    for index in _longest_first(lengths):
        if not groups or longest * (len(groups[-1]) + 1) > token_budget:
            groups.append([])
            longest = lengths[index]
        groups[-1].append(index)
    return groups


def packed_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """As `micro_batches`, for sequences end to end: the sum of the lengths of each group is within the budget."""
    if token_budget < 1:
        raise ValueError(f"token_budget {token_budget} must be at least 1")
    groups: list[list[int]] = []
    total = 0
    for index in _longest_first(lengths):
        if not groups or total + lengths[index] > token_budget:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += lengths[index]
    return groups


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
