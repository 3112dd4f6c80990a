"""Slabs of rows against a plain dict of what each sequence wrote."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_sampler.account import NOBODY
from farstep_sampler.engines.kv_rows import Cell, KVRows, columns_for
from farstep_sampler.engines.kv_shape import KVShape
from farstep_sampler.request import SampleJob
from farstep_sampler.scheduler import Group, Sequence

SHAPE = KVShape(((1, 2), (1, 2)), torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def sequence(make_job: Callable[..., SampleJob]) -> Sequence:
    group = Group(1, make_job([7]), slot=0, version=0, streams=False, account=NOBODY, make_stops=lambda job: None)
    return group.start(1)[0]


@settings(max_examples=100, deadline=None)
@given(actions=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11), st.integers(1, 900)), max_size=25))
def test_rows_keep_what_was_written_wherever_they_move(sequence: Sequence, actions: list[tuple[int, int, int]]) -> None:
    rows = KVRows(SHAPE, budget_tokens=8192, longest=2048)
    held: dict[Cell, float] = {}
    for number, (action, which, num_tokens) in enumerate(actions, start=1):
        cell = list(held)[which % len(held)] if held else None
        if action <= 1 and rows.admits(2, num_context=0, num_tokens=num_tokens) == 2:
            cells = rows.start([sequence, sequence], num_tokens)
            rows.write(cells, [torch.full((1, num_tokens, 2), float(number))] * 2, num_tokens)
            held |= dict.fromkeys(cells, float(number))
        elif action == 2 and cell is not None and cell.slab.room < 2048 and rows.can_grow([cell]):
            rows.grow([cell])
        elif action == 3 and cell is not None:
            del held[cell]
            rows.end([cell])
        for known, value in held.items():
            assert all(array[known.row, 0, 0].tolist() == [value] * 2 for array in known.slab.arrays)
            assert known.slab.cells[known.row] is known
        assert sum(len(slab.cells) for slab in rows.slabs()) == len(held)
        assert rows.used <= 8192
        assert sum(slab.num_rows * slab.room for slab in rows.slabs()) <= 8192
    rows.end(list(held))
    assert rows.used == 0


def test_one_sequence_is_always_admitted() -> None:
    rows = KVRows(SHAPE, budget_tokens=10, longest=2048)
    assert rows.admits(3, num_context=2000, num_tokens=2048) == 1


def test_columns_avoid_numbers_at_which_sums_change_their_order() -> None:
    assert [columns_for(n) for n in (1, 64, 65, 192, 193, 320, 384, 385, 512, 700, 800)] == [
        64, 64, 128, 192, 384, 384, 384, 448, 512, 704, 896,
    ]  # fmt: skip
