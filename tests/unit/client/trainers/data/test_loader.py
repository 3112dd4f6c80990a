"""Batches in an order that can be found again."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep.trainers.data import Batch, Cursor, Dataset, Loader
from farstep.trainers.errors import DataError
from farstep.trainers.sequence import TrainSequence


def numbered(num: int, rows_per_group: int = 1) -> Dataset:
    """Group i has tokens that begin with i."""
    return Dataset.of([[TrainSequence([i, side, 9], [0, 1, 1]) for side in range(rows_per_group)] for i in range(num)])


def seen(loader: Loader, epoch: int = 0) -> list[tuple[int, ...]]:
    return [batch.indices for batch in loader.batches(loader.start(epoch))]


def test_an_epoch_has_every_row_once_and_each_epoch_its_own_order() -> None:
    loader = Loader(numbered(10), 4, seed=1)
    assert len(loader) == 3
    first, second = seen(loader), seen(loader, 1)
    assert [len(batch) for batch in first] == [4, 4, 2]
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(10))
    assert first != second
    assert first == seen(Loader(numbered(10), 4, seed=1))
    assert first != seen(Loader(numbered(10), 4, seed=2))
    assert seen(Loader(numbered(10), 4, shuffle=False), 5) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]


def test_batches_have_what_their_numbers_say() -> None:
    loader = Loader(numbered(5, rows_per_group=2), 2)
    for batch in loader.batches():
        assert [sequence.tokens[0] for sequence in batch.sequences] == [i for i in batch.indices for _ in range(2)]
        assert [sequence.tokens[1] for sequence in batch.sequences] == [0, 1] * len(batch)


def everything(loader: Loader, cursor: Cursor, num: int) -> list[Batch]:
    """Batches from a cursor on, over the ends of epochs."""
    found: list[Batch] = []
    while len(found) < num:
        for batch in islice(loader.batches(cursor), num - len(found)):
            found.append(batch)
            cursor = batch.cursor
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num=st.integers(1, 30),
    batch_size=st.integers(1, 8),
    drop_last=st.booleans(),
    min_iterations=st.integers(0, 9),
    overfit=st.booleans(),
    stop=st.integers(0, 20),
)
def test_who_goes_on_from_a_cursor_sees_what_the_other_would_have_seen(
    num: int, batch_size: int, drop_last: bool, min_iterations: int, overfit: bool, stop: int
) -> None:
    def made() -> Loader:
        return Loader(
            numbered(num),
            batch_size,
            drop_last=drop_last and num >= batch_size,
            min_iterations=min_iterations,
            overfit_first_batch=overfit,
        )

    whole = everything(made(), made().start(), 24)
    saved = json.dumps(whole[stop].cursor.to_dict())
    after = everything(made(), Cursor.from_dict(json.loads(saved)), 23 - stop)
    assert [(b.epoch, b.index, b.indices) for b in after] == [(b.epoch, b.index, b.indices) for b in whole[stop + 1 :]]
    assert [b.is_last for b in whole] == [b.index + 1 == len(made()) for b in whole]


def test_a_cursor_of_other_data_is_refused() -> None:
    cursor = next(iter(Loader(numbered(10), 4).batches())).cursor
    for other in (
        Loader(numbered(11), 4),
        Loader(numbered(10), 5),
        Loader(numbered(10), 4, seed=1),
        Loader(numbered(10), 4, shuffle=False),
        Loader(Dataset.of([[TrainSequence([7, i], [0, 1])] for i in range(10)]), 4),
    ):
        with pytest.raises(DataError, match="the cursor is of other data"):
            other.batches(cursor)
    with pytest.raises(DataError, match="cursor: batch 4 of 3"):
        Loader(numbered(10), 4).batches(Cursor(0, 4))
    assert list(Loader(numbered(10), 4).batches(Cursor(0, 3))) == []


@pytest.mark.parametrize(
    "value", [{}, {"epoch": 1}, {"epoch": -1, "batch": 0}, {"epoch": True, "batch": 0}, {"epoch": 0, "batch": "1"}, 3]
)
def test_what_is_no_cursor_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="no cursor"):
        Cursor.from_dict(value)  # type: ignore[arg-type]


def test_the_last_batch_may_be_dropped() -> None:
    loader = Loader(numbered(10), 4, drop_last=True)
    assert len(loader) == 2
    assert [len(batch) for batch in seen(loader)] == [4, 4]
    assert len(Loader(numbered(8), 4, drop_last=True)) == 2
    with pytest.raises(DataError, match=r"data\.drop_last: 3 rows make no batch of 4"):
        Loader(numbered(3), 4, drop_last=True)


def test_an_epoch_repeats_the_data_until_it_is_long_enough() -> None:
    loader = Loader(numbered(5), 2, min_iterations=10)
    batches = seen(loader)
    assert [len(batch) for batch in batches] == [2] * 10
    flat = [index for batch in batches for index in batch]
    rounds = [flat[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == list(range(5)) for one in rounds)
    assert rounds[0] != rounds[1] or rounds[1] != rounds[2]
    assert len(Loader(numbered(50), 2, min_iterations=10)) == 25


def test_the_first_batch_again_and_again() -> None:
    loader = Loader(numbered(10), 4, overfit_first_batch=True)
    first = seen(Loader(numbered(10), 4))[0]
    assert seen(loader) + seen(loader, 3) == [first] * 6


def test_impossible_loaders_are_refused() -> None:
    with pytest.raises(DataError, match="batch_size: 0"):
        Loader(numbered(3), 0)
    with pytest.raises(DataError, match="there are no rows"):
        Loader(Dataset.of([]), 1)
    with pytest.raises(DataError, match="number: batch 9 of 3"):
        Loader(numbered(3), 1).batch(0, 9)
