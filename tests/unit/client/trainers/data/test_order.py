"""Orders of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep.trainers.data.order import mixed, parted, permutation, sampled, sliced
from farstep.trainers.errors import DataError


def test_a_permutation_is_the_same_for_ever() -> None:
    """Written down: a resumed run depends on it, on whatever machine and version."""
    assert permutation(10, 42, "epoch", 0, 0).tolist() == PERMUTATION
    assert permutation(10, 42, "epoch", 1, 0).tolist() != PERMUTATION
    assert permutation(0, 1).tolist() == []


PERMUTATION = [2, 6, 5, 8, 4, 1, 0, 3, 7, 9]


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 200), st.integers())
def test_a_permutation_has_everything_once(num: int, seed: int) -> None:
    assert sorted(permutation(num, seed).tolist()) == list(range(num))


def test_permutations_are_even() -> None:
    """Each of 6 orders of 3 things, about equally often: 1000 ± 5 standard deviations (29)."""
    orders = [tuple(permutation(3, seed).tolist()) for seed in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts) < 145


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (None, range(10)),
        ((None, 3), range(3)),
        ((2, None), range(2, 10)),
        ((-3, None), range(7, 10)),
        ((None, "10%"), range(1)),
        (("50%", "80%"), range(5, 8)),
        (("-20%", None), range(8, 10)),
        ((5, 2), range(0)),
        ((None, 99), range(10)),
    ],
)
def test_slices(bounds: object, expected: range) -> None:
    assert list(sliced(10, bounds)) == list(expected)  # type: ignore[arg-type]


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 60), st.floats(0.01, 4), st.integers(0, 5))
def test_a_ratio_is_exact_and_even(num: int, ratio: float, seed: int) -> None:
    chosen = sampled(range(num), ratio, None, seed).tolist()
    assert len(chosen) == round(num * ratio)
    times = [chosen.count(row) for row in range(num)]
    assert max(times) - min(times) <= 1
    assert chosen == sampled(range(num), ratio, None, seed).tolist()


def test_a_count_is_taken_in_order_and_not_more_than_there_are() -> None:
    chosen = sampled(range(10, 20), None, 4, 1).tolist()
    assert len(set(chosen)) == 4
    assert chosen == sorted(chosen)
    assert chosen != sampled(range(10, 20), None, 4, 2).tolist()
    with pytest.raises(DataError, match="sample_count: 11 of 10 rows"):
        sampled(range(10), None, 11, 1)


@pytest.mark.parametrize("how", ["concatenate", "interleave", "shuffle"])
def test_mixtures_have_every_row_once(how: str) -> None:
    sources, rows = mixed([3, 0, 6], how, 7)
    pairs = sorted(zip(sources.tolist(), rows.tolist(), strict=True))
    assert pairs == [(0, row) for row in range(3)] + [(2, row) for row in range(6)]
    assert mixed([3, 0, 6], how, 7)[1].tolist() == rows.tolist()


def test_interleaving_spreads_sources_evenly_and_keeps_their_order() -> None:
    sources, rows = mixed([2, 6], "interleave")
    assert sources.tolist() == [1, 1, 0, 1, 1, 1, 0, 1] or np.abs(np.diff(np.flatnonzero(sources == 0))) == 4
    assert rows[sources == 1].tolist() == list(range(6))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.floats(0.05, 0.5), st.integers(0, 3))
def test_what_is_held_out_is_never_trained_on_even_if_it_is_there_twice(
    contents: list[int], share: float, seed: int
) -> None:
    rows = [bytes([content]) for content in contents]
    train, held_out = parted(rows, share, seed)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(rows)))
    assert not {rows[i] for i in train} & {rows[i] for i in held_out}
    assert len(held_out) <= max(1, round(len(rows) * share))


def test_the_share_is_exact_where_rows_differ() -> None:
    rows = [bytes([i]) for i in range(50)]
    train, held_out = parted(rows, 0.1, 3)
    assert (len(train), len(held_out)) == (45, 5)
    assert held_out.tolist() != parted(rows, 0.1, 4)[1].tolist()
    assert held_out.tolist() == parted(rows, 0.1, 3)[1].tolist()
