"""The queue: seq order within a run, fairness across runs, gaps, limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farstep_proto.errors import Conflict, Draining, PayloadTooLarge, TooManyRequests
from farstep_worker.operations import OperationQueue, QueueLimits, Work, operation_id, split_operation_id
from farstep_worker.submission import Pass, Skip


def work(run_id="a", seq=1, *, num_bytes=1, call=None):
    return Work(run_id, seq, call or Skip(), num_bytes)


def take_all(queue):
    taken = []
    while (item := queue.take(now=0)) is not None:
        taken.append(item)
    return taken


class Costly(Skip):
    """A call of a given number of tokens."""

    def __init__(self, num_tokens):
        object.__setattr__(self, "num_tokens", num_tokens)


def test_a_group_takes_heads_of_other_runs_which_pay_for_it():
    queue = OperationQueue()
    for run_id, seq, size in (
        ("a", 1, 5),
        ("a", 2, 5),
        ("b", 1, 5),
        ("c", 1, 50),
        ("d", 2, 5),
        ("e", 1, 5),
        ("f", 1, 5),
    ):
        queue.put(work(run_id, seq, call=Costly(size)), now=0)

    def take():
        group = queue.take_group(now=0, joins=lambda one, other: max(one.num_tokens, other.num_tokens) < 20, most=3)
        return [item.operation_id for item in group]

    # no second one of a run, no large one, none behind a gap; and the next is who has used least
    assert [take() for _ in range(4)] == [["a:1", "b:1", "e:1"], ["c:1"], ["f:1", "a:2"], []]
    assert queue.num_operations == 1
    assert queue.is_waiting("d")
    assert not queue.is_waiting("a")


def test_a_forgotten_run_frees_its_room():
    queue = OperationQueue(limits=QueueLimits(max_bytes=10))
    for seq in (1, 3):
        queue.put(work(seq=seq, num_bytes=5), now=0)
    queue.cancel("a:1", now=0)
    assert [item.seq for item in queue.forget("a")] == [3]
    assert queue.forget("a") == []
    assert (queue.num_operations, queue.num_bytes, queue.take(now=0), queue.next_deadline()) == (0, 0, None, None)
    queue.put(work("b", 1, num_bytes=10), now=0)


@st.composite
def arrivals(draw):
    """Operations of some runs in any order of arrival, some more than once, some cancelled, with takes in between."""
    sizes = draw(st.dictionaries(st.sampled_from(["a", "b:x", "c"]), st.integers(1, 6), min_size=1))
    operations = [(run_id, seq) for run_id, size in sizes.items() for seq in range(1, size + 1)]
    repeated = draw(st.lists(st.sampled_from(operations), max_size=5))
    order = draw(st.permutations([*operations, *repeated]))
    cancelled = draw(st.sets(st.sampled_from(operations), max_size=4))
    takes = draw(st.lists(st.integers(0, 3), min_size=len(order), max_size=len(order)))
    return operations, order, cancelled, takes


@given(arrivals())
def test_each_operation_is_passed_once_in_seq_order_whatever_the_order_of_arrival(case):
    operations, order, cancelled, takes = case
    queue = OperationQueue()
    taken, dropped, entered = [], [], set()
    for (run_id, seq), num_takes in zip(order, takes, strict=True):
        if (run_id, seq) in entered:
            with pytest.raises(Conflict):
                queue.put(work(run_id, seq), now=0)
        else:
            queue.put(work(run_id, seq), now=0)
            entered.add((run_id, seq))
        if (run_id, seq) in cancelled and queue.cancel(operation_id(run_id, seq), now=0):
            dropped.append((run_id, seq))
        for _ in range(num_takes):
            item = queue.take(now=0)
            taken += [(item.run_id, item.seq)] if item else []
    taken += [(item.run_id, item.seq) for item in take_all(queue)]
    assert sorted(taken + dropped) == sorted(operations)
    for run_id in {run_id for run_id, _ in operations}:
        seqs = [seq for run, seq in taken if run == run_id]
        assert seqs == sorted(seqs)


@given(st.lists(st.integers(1, 100), min_size=5, max_size=30), st.lists(st.integers(1, 100), min_size=5, max_size=30))
def test_two_busy_runs_are_never_further_apart_than_their_largest_operations(costs_a, costs_b):
    queue = OperationQueue()
    for run_id, costs in (("a", costs_a), ("b", costs_b)):
        for seq, cost in enumerate(costs, start=1):
            queue.put(work(run_id, seq, call=Costly(cost)), now=0)
    used = {"a": 0, "b": 0}
    left = {"a": len(costs_a), "b": len(costs_b)}
    while all(left.values()):
        item = queue.take(now=0)
        used[item.run_id] += item.cost
        left[item.run_id] -= 1
        assert abs(used["a"] - used["b"]) <= max(costs_a) + max(costs_b)


def test_a_run_that_was_idle_cannot_save_up_its_turns():
    queue = OperationQueue()
    for seq in range(1, 101):
        queue.put(work("busy", seq, call=Costly(10)), now=0)
    for _ in range(50):
        queue.take(now=0)
    for seq in range(1, 11):
        queue.put(work("late", seq, call=Costly(10)), now=0)
    first_20 = [queue.take(now=0).run_id for _ in range(20)]
    assert first_20.count("busy") == 10


def test_a_gap_is_waited_for_and_then_given_up_naming_what_is_missing():
    queue = OperationQueue(gap_wait_s=10)
    queue.put(work(seq=1), now=0)
    queue.put(work(seq=3), now=1)
    queue.put(work(seq=5), now=2)
    assert queue.take(now=3).seq == 1
    assert queue.take(now=3) is None
    assert queue.next_deadline() == 13  # since when 2 could have run
    assert queue.give_up_gaps(now=12.9) == []
    assert [(item.seq, missing) for item, missing in queue.give_up_gaps(now=13)] == [(3, 2), (5, 2)]
    assert queue.next_deadline() is None
    assert queue.first_free_seq("a") == 6
    with pytest.raises(Conflict, match="seq 2 of run a was passed; the next is 6"):
        queue.put(work(seq=2), now=14)
    queue.put(work(seq=6), now=14)
    assert queue.take(now=14).seq == 6


def test_parts_of_the_missing_operation_prolong_the_wait():
    queue = OperationQueue(gap_wait_s=10)
    queue.put(work(seq=2), now=0)
    queue.touch_gap("a", 1, now=8)
    assert queue.give_up_gaps(now=12) == []
    queue.touch_gap("a", 3, now=12)  # another one
    assert len(queue.give_up_gaps(now=18)) == 1


def test_only_cancelled_operations_behind_a_gap_leave_nothing_to_wait_for():
    queue = OperationQueue(gap_wait_s=10)
    queue.put(work(seq=2), now=0)
    assert queue.cancel("a:2", now=1)
    assert queue.next_deadline() is None
    queue.put(work(seq=1), now=2)
    queue.put(work(seq=3), now=2)
    assert [item.seq for item in take_all(queue)] == [1, 3]


def test_a_cancelled_operation_keeps_its_seq():
    queue = OperationQueue()
    queue.put(work(seq=1), now=0)
    queue.put(work(seq=2), now=0)
    assert queue.cancel("a:2", now=0)
    assert not queue.cancel("a:2", now=0)
    with pytest.raises(Conflict):
        queue.put(work(seq=2), now=0)
    assert not queue.cancel("b:1", now=0)
    assert not queue.cancel("nonsense", now=0)


def test_limits_refuse_for_now_but_never_the_one_that_is_waited_for():
    queue = OperationQueue(limits=QueueLimits(max_operations=2, max_bytes=100))
    queue.put(work(seq=2, num_bytes=40), now=0)
    with pytest.raises(TooManyRequests) as caught:
        queue.put(work(seq=3, num_bytes=61), now=0)
    assert caught.value.retry_after_s is not None
    queue.put(work(seq=3, num_bytes=50), now=0)
    with pytest.raises(TooManyRequests):
        queue.put(work(seq=4), now=0)
    with pytest.raises(PayloadTooLarge):
        queue.put(work(seq=1, num_bytes=101), now=0)
    queue.put(work(seq=1, num_bytes=99), now=0)
    assert len(take_all(queue)) == 3
    queue.put(work(seq=4, num_bytes=100), now=0)


def test_bytes_that_are_coming_in_count():
    queue = OperationQueue(limits=QueueLimits(max_bytes=100))
    queue.check_room("a", 2, num_bytes=50, held_bytes=50)
    with pytest.raises(TooManyRequests):
        queue.check_room("a", 2, num_bytes=50, held_bytes=51)


def test_place_counts_earlier_ones_and_other_runs_turns():
    queue = OperationQueue()
    for seq in range(1, 4):
        queue.put(work("a", seq), now=0)
    queue.put(work("b", 1), now=0)
    assert [queue.place(f"a:{seq}") for seq in (1, 2, 3)] == [1, 2, 3]
    assert queue.place("b:1") == 1
    assert queue.place("c:1") == 0


def test_a_closed_queue_gives_back_what_is_left_and_takes_nothing():
    queue = OperationQueue()
    queue.put(work(seq=1), now=0)
    queue.put(work(seq=3), now=0)
    assert [item.seq for item in queue.close()] == [1, 3]
    assert queue.take(now=0) is None
    with pytest.raises(Draining):
        queue.put(work(seq=2), now=0)


def test_operation_ids_of_runs_with_colons():
    assert split_operation_id(operation_id("a:b", 7)) == ("a:b", 7)


def test_a_pass_weighs_its_tokens():
    import numpy as np

    from farstep_worker.submission import Example

    example = Example(np.zeros(5, dtype=np.int32), {})
    assert work(call=Pass("cross_entropy", {}, (example, example), backward=True)).cost == 10
    assert work().cost == 1
