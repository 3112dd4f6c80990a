"""Who runs, whose turn it is, and who has to wait."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farstep_sampler.account import Account
from farstep_sampler.request import SampleJob
from farstep_sampler.scheduler import Group, Join, Scheduler

MakeJob = Callable[..., SampleJob]
MakeGroup = Callable[..., Group]


@pytest.fixture(scope="module")
def group(make_job: MakeJob) -> MakeGroup:
    def make(ticket: int, *, num_prompt: int = 3, client: str = "", asker: str = "", **changes: object) -> Group:
        job = make_job([7] * num_prompt, **changes)
        return Group(
            ticket, job, slot=0, version=0, streams=False, account=Account(asker, client), make_stops=lambda job: None
        )

    return make


def scheduler(*, max_rows: int = 4, room: int = 1000) -> Scheduler:
    return Scheduler(max_rows=max_rows, room=lambda wanted, *, num_context, num_tokens: min(wanted, room))


def joins_of(plan: Scheduler) -> list[Join]:
    return list(iter(plan.next_join, None))


def start_all(plan: Scheduler) -> list[Join]:
    joins = joins_of(plan)
    for join in joins:
        plan.start(join)
    return joins


def test_first_come_first_served_and_a_group_may_start_in_parts(group: MakeGroup) -> None:
    plan = scheduler()
    plan.add(group(1, num_samples=3))
    plan.add(group(2, num_samples=3))
    assert [(join.group.ticket, len(join.sequences)) for join in start_all(plan)] == [(1, 3), (2, 1)]
    assert plan.num_waiting == 0
    for sequence in list(plan.running)[:2]:
        del plan.running[sequence]
    (join,) = joins_of(plan)
    assert [sequence.index for sequence in join.sequences] == [1, 2]


def test_clients_take_turns(group: MakeGroup) -> None:
    plan = scheduler(max_rows=6)
    for ticket in range(100):
        plan.add(group(ticket, client="greedy"))
    plan.add(group(200, client="modest"))
    plan.add(group(300, client="third"))
    plan.add(group(301, client="third"))
    assert [join.group.ticket for join in joins_of(plan)] == [0, 200, 300, 1, 301, 2]


def test_projects_take_turns_and_so_do_the_clients_of_each(group: MakeGroup) -> None:
    """Many clients of one project do not crowd out the only one of another."""
    plan = scheduler(max_rows=8)
    for ticket in range(20):
        plan.add(group(ticket, asker="large", client=f"client-{ticket % 4}"))
    plan.add(group(200, asker="small", client="client-0"))
    plan.add(group(201, asker="small", client="client-0"))
    assert [join.group.ticket for join in joins_of(plan)] == [0, 200, 1, 201, 2, 3, 4, 5]


def test_a_project_has_its_share_of_the_rows_however_many_its_clients(group: MakeGroup) -> None:
    plan = scheduler(max_rows=12)
    for number in range(3):
        plan.add(group(number, asker="large", client=str(number), num_samples=100))
    plan.add(group(9, asker="small", num_samples=6))
    assert [(join.group.ticket, len(join.sequences)) for join in joins_of(plan)][:3] == [(0, 2), (9, 6), (1, 4)]


def test_a_large_group_leaves_room_for_others_that_wait(group: MakeGroup) -> None:
    plan = scheduler(max_rows=8)
    plan.add(group(1, client="greedy", num_samples=100))
    plan.add(group(2, client="modest", num_samples=3))
    assert [(join.group.ticket, len(join.sequences)) for join in joins_of(plan)] == [(1, 4), (2, 3), (1, 1)]


def test_rows_being_prepared_count(group: MakeGroup) -> None:
    plan = scheduler(max_rows=4)
    plan.add(group(1, num_samples=4))
    assert len(joins_of(plan)) == 1
    plan.add(group(2))
    assert joins_of(plan) == []


def test_what_the_cache_has_no_room_for_waits_in_its_place(group: MakeGroup) -> None:
    plan = Scheduler(max_rows=8, room=lambda wanted, *, num_context, num_tokens: wanted if num_context < 50 else 0)
    plan.add(group(1, num_prompt=90))
    plan.add(group(2))
    assert joins_of(plan) == []
    assert plan.num_waiting == 2


def test_looking_at_a_prompt_takes_no_row(group: MakeGroup) -> None:
    plan = scheduler(max_rows=1)
    plan.add(group(1))
    start_all(plan)
    plan.add(group(2, max_tokens=0, wants_prompt_logprobs=True))
    (join,) = joins_of(plan)
    assert join.sequences == []


def test_the_last_to_join_is_preempted_and_comes_back_first(group: MakeGroup) -> None:
    plan = scheduler(max_rows=3)
    for ticket in (1, 2, 3):
        plan.add(group(ticket))
    start_all(plan)
    for sequence in plan.running:
        sequence.push(9, -1.0)
        sequence.push(8, -1.0)
    assert plan.preempt().group.ticket == 3
    plan.add(group(4))
    join = plan.next_join()
    assert join is not None
    assert join.group.ticket == 3
    assert join.is_resumed
    assert join.context == [7, 7, 7, 9]
    assert join.sequences[0].last_token == 8


def test_dropping_a_group_forgets_it_everywhere(group: MakeGroup) -> None:
    plan = scheduler(max_rows=2)
    first, second = group(1, num_samples=3), group(2)
    plan.add(first)
    plan.add(second)
    start_all(plan)
    plan.preempt()
    assert len(plan.drop(first)) == 1
    (join,) = joins_of(plan)
    assert join.group is second
    plan.drop(second)
    assert not plan.has_waiting
    assert not plan.running


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_nobody_is_lost_and_nobody_waits_for_ever(group: MakeGroup, data: st.DataObject) -> None:
    plan = scheduler(max_rows=5)
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 9), st.sampled_from("abc")), min_size=1, max_size=8))
    for ticket, (num_samples, client) in enumerate(sizes):
        plan.add(group(ticket, num_samples=num_samples, client=client))
    seen: dict[int, list[int]] = {}
    rounds = 0
    while plan.has_waiting or plan.running:
        rounds += 1
        assert rounds < 200
        for join in start_all(plan):
            for sequence in join.sequences:
                if not sequence.tokens:
                    seen.setdefault(join.group.ticket, []).append(sequence.index)
        assert len(plan.running) <= 5
        if len(plan.running) > 1 and data.draw(st.booleans()):
            for sequence in plan.running:
                sequence.tokens.append(1)
            plan.preempt()
        del plan.running[next(iter(plan.running))]
    assert seen == {ticket: list(range(num_samples)) for ticket, (num_samples, _) in enumerate(sizes)}
