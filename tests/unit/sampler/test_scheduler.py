"""Who runs, in which row, and who has to wait."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_sampler.request import SampleJob
from farstep_sampler.scheduler import Group, Scheduler

MakeJob = Callable[..., SampleJob]


@pytest.fixture(scope="module")
def group(make_job: MakeJob) -> Callable[..., Group]:
    def make(ticket: int, *, num_prompt: int = 3, **changes: object) -> Group:
        return Group(
            ticket, make_job([7] * num_prompt, **changes), slot=0, version=0, streams=False, make_stops=lambda job: None
        )

    return make


def scheduler(*, max_rows: int = 4, budget: int = 10_000, prefill_tokens: int = 100) -> Scheduler:
    return Scheduler(
        max_rows=max_rows, fits=lambda rows, tokens: rows * tokens <= budget, prefill_tokens=prefill_tokens
    )


def test_first_come_first_served_and_a_group_may_start_in_parts(group: Callable[..., Group]) -> None:
    plan = scheduler()
    plan.add(group(1, num_samples=3))
    plan.add(group(2, num_samples=3))
    joins = plan.admit()
    assert [(join.group.ticket, len(join.sequences)) for join in joins] == [(1, 3), (2, 1)]
    assert [plan.start(join) for join in joins] == [range(3), range(3, 4)]
    assert plan.admit() == []
    assert plan.num_waiting == 0
    plan.remove([0, 1])
    (join,) = plan.admit()
    assert [sequence.index for sequence in join.sequences] == [1, 2]


def test_long_contexts_join_one_step_at_a_time(group: Callable[..., Group]) -> None:
    plan = scheduler(prefill_tokens=100)
    for ticket in range(3):
        plan.add(group(ticket, num_prompt=91))
    for expected in range(3):
        (join,) = plan.admit()
        assert join.group.ticket == expected
        assert len(join.context) == 90
        plan.start(join)


def test_a_prompt_longer_than_a_step_takes_in_still_joins(group: Callable[..., Group]) -> None:
    plan = scheduler(prefill_tokens=100)
    plan.add(group(1, num_prompt=500))
    assert len(plan.admit()) == 1


def test_one_sequence_runs_however_small_the_cache(group: Callable[..., Group]) -> None:
    plan = scheduler(budget=1)
    plan.add(group(1, num_samples=2))
    (join,) = plan.admit()
    assert len(join.sequences) == 1


def test_looking_at_a_prompt_takes_no_row(group: Callable[..., Group]) -> None:
    plan = scheduler(max_rows=1)
    plan.add(group(1))
    plan.start(plan.admit()[0])
    plan.add(group(2, max_tokens=0, wants_prompt_logprobs=True))
    (join,) = plan.admit()
    assert join.sequences == []
    assert not plan.admit()


def test_the_last_to_join_is_preempted_and_comes_back_first(group: Callable[..., Group]) -> None:
    plan = scheduler(max_rows=3)
    for ticket in (1, 2, 3):
        plan.add(group(ticket))
    for join in plan.admit():
        plan.start(join)
    for sequence in plan.running:
        sequence.push(9, -1.0)
        sequence.push(8, -1.0)
    assert plan.preempt() == []
    plan.add(group(4))
    (join, *_) = plan.admit()
    assert join.group.ticket == 3
    assert join.is_resumed
    assert join.context == [7, 7, 7, 9]
    assert join.sequences[0].last_token == 8


@settings(max_examples=100, deadline=None)
@given(num_rows=st.integers(1, 12), data=st.data())
def test_removals_keep_rows_dense_and_moves_say_how(
    group: Callable[..., Group], num_rows: int, data: st.DataObject
) -> None:
    plan = scheduler(max_rows=12)
    plan.add(group(1, num_samples=num_rows))
    plan.start(plan.admit()[0])
    cache = list(plan.running)
    leaving = data.draw(st.sets(st.integers(0, num_rows - 1)))
    staying = [sequence for row, sequence in enumerate(cache) if row not in leaving]
    moves = plan.remove(leaving)
    assert {move.target for move in moves}.isdisjoint(move.source for move in moves)
    for move in moves:
        cache[move.target] = cache[move.source]
    assert plan.running == cache[: len(staying)]
    assert set(map(id, plan.running)) == set(map(id, staying))


def test_dropping_a_group_forgets_it_everywhere(group: Callable[..., Group]) -> None:
    plan = scheduler(max_rows=2)
    first, second = group(1, num_samples=3), group(2)
    plan.add(first)
    plan.add(second)
    plan.start(plan.admit()[0])
    plan.preempt()
    plan.drop(first)
    (join,) = plan.admit()
    assert join.group is second
    plan.drop(second)
    assert not plan.has_work
