"""The operations table: opened once, finished once, delivered until acknowledged."""

import asyncio
import tracemalloc

import pytest

from farstep_proto.errors import Conflict, Draining, NotFound
from farstep_proto.v1 import common_pb2
from farstep_proto.v1 import operations_pb2 as pb
from farstep_serving.operations import OperationTable

DONE = pb.OPERATION_STATE_SUCCEEDED


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def opened(*ids, **kwargs):
    table = OperationTable(**kwargs)
    for operation_id in ids:
        assert table.open(operation_id, client_id="c", verb="forward", digest=b"d")
    return table


async def poll(table, *, ack=(), check=(), wait_s=0.0, client="c"):
    response = await table.poll(pb.PollRequest(client_id=client, ack=ack, check=check, wait_s=wait_s))
    return [operation.operation_id for operation in response.finished], list(response.unknown)


async def test_delivered_until_acknowledged():
    table = opened("a", "b")
    table.finish("a", pb.Operation(state=DONE))
    assert await poll(table) == (["a"], [])
    assert await poll(table) == (["a"], [])  # the first answer may have been lost
    assert await poll(table, ack=["a"]) == ([], [])
    assert (await table.wait("a", 0)).state == DONE  # still known after that


async def test_poll_wakes_for_one_and_brings_all():
    table = opened("a", "b")
    waiting = asyncio.create_task(poll(table, wait_s=30))
    await asyncio.sleep(0)
    table.finish("b", pb.Operation(state=DONE))
    table.finish("a", pb.Operation(state=DONE))
    assert await waiting == (["b", "a"], [])


async def test_an_operation_opened_during_a_poll_wakes_it():
    table = opened("a")
    waiting = asyncio.create_task(poll(table, wait_s=30))
    await asyncio.sleep(0)
    table.open("late", client_id="c", verb="forward", digest=b"d")
    table.finish("late", pb.Operation(state=DONE))
    assert await waiting == (["late"], [])


async def test_clients_hear_only_of_their_own():
    table = opened("a")
    table.finish("a", pb.Operation(state=DONE))
    assert await poll(table, client="other", ack=["a"]) == ([], [])
    assert await poll(table) == (["a"], [])


async def test_whoever_asks_after_an_operation_hears_of_it_once():
    table = opened("a", "b")
    table.finish("a", pb.Operation(state=DONE))
    assert await poll(table, client="new", check=["a", "b", "c"]) == (["a"], ["c"])
    assert await poll(table, client="new", ack=["a"], check=["b"]) == ([], [])
    assert [operation.operation_id for operation in table.list_of("", unfetched=True)] == ["b"]
    table.finish("b", pb.Operation(state=DONE))
    assert await poll(table, client="new") == (["b"], [])
    assert await poll(table) == (["a", "b"], [])  # who submitted them still hears of them


async def test_same_submission_is_the_same_operation():
    table = opened("a")
    assert not table.open("a", client_id="c", verb="forward", digest=b"d")
    with pytest.raises(Conflict):
        table.open("a", client_id="c", verb="forward", digest=b"other")


async def test_every_client_that_submitted_it_hears_of_it():
    table = opened("a", "b")
    assert not table.open("a", client_id="other", verb="forward", digest=b"d")
    table.finish("a", pb.Operation(state=DONE))
    table.finish("b", pb.Operation(state=DONE))
    assert await poll(table, client="other") == (["a"], [])
    assert await poll(table, client="other", ack=["a"]) == ([], [])
    assert await poll(table) == (["a", "b"], [])
    assert await poll(table, ack=["a", "b"]) == ([], [])


async def test_a_submission_repeated_after_its_outcome_was_acknowledged_brings_it_again():
    clock = Clock()
    table = opened("a", clock=clock, retention_s=10)
    table.finish("a", pb.Operation(state=DONE))
    assert await poll(table, ack=["a"]) == ([], [])
    assert not table.open("a", client_id="other", verb="forward", digest=b"d")
    assert await poll(table, client="other") == (["a"], [])
    clock.now = 11
    assert await poll(table, client="other") == ([], [])
    assert table._channels == {}
    assert table._entries == {}


@pytest.mark.parametrize("is_acknowledged", [False, True])
async def test_what_nobody_was_there_to_do_can_be_submitted_again(is_acknowledged):
    table = opened("a")
    table.fail("a", common_pb2.Error(status=503))
    assert await poll(table) == (["a"], [])
    if is_acknowledged:
        assert await poll(table, ack=["a"]) == ([], [])
    table.forget_lost("a", b"d")
    assert table.open("a", client_id="c", verb="forward", digest=b"d")
    assert await poll(table) == ([], [])
    table.finish("a", pb.Operation(state=DONE))
    assert await poll(table) == (["a"], [])
    assert await poll(table, ack=["a"]) == ([], [])
    assert (await table.wait("a", 0)).state == DONE
    assert table.num_pending == 0


@pytest.mark.parametrize("status", [422, 500])
async def test_other_failures_are_remembered(status):
    table = opened("a", "pending")
    table.fail("a", common_pb2.Error(status=status))
    for operation_id in ("a", "pending", "unknown"):
        table.forget_lost(operation_id, b"d")
    assert not table.open("a", client_id="c", verb="forward", digest=b"d")
    assert table.is_pending("pending")


async def test_a_failure_of_other_content_or_while_draining_is_remembered():
    table = opened("a")
    table.fail("a", common_pb2.Error(status=503))
    table.forget_lost("a", b"other")
    with pytest.raises(Conflict):
        table.open("a", client_id="c", verb="forward", digest=b"other")
    table.drain()
    table.forget_lost("a", b"d")
    assert not table.open("a", client_id="c", verb="forward", digest=b"d")


async def test_finishing_twice_is_a_mistake():
    table = opened("a")
    table.finish("a", pb.Operation(state=DONE))
    with pytest.raises(AssertionError):
        table.finish("a", pb.Operation(state=DONE))


async def test_unknown_ids_are_told_at_once():
    table = opened("a")
    assert await poll(table, check=["a", "gone"], wait_s=30) == ([], ["gone"])
    with pytest.raises(NotFound):
        await table.wait("gone", 0)


async def test_acknowledged_outcomes_expire():
    clock = Clock()
    table = opened("a", clock=clock, retention_s=3600)
    table.finish("a", pb.Operation(state=DONE))
    await poll(table, ack=["a"])
    clock.now = 3599
    await poll(table)
    assert (await table.wait("a", 0)).state == DONE
    clock.now = 3601
    await poll(table)
    with pytest.raises(NotFound):
        await table.wait("a", 0)


async def test_acknowledged_outcomes_are_dropped_beyond_their_budget():
    table = OperationTable(max_retained_bytes=100)
    for index in range(50):
        table.open(str(index), client_id="c", verb="forward", digest=b"")
        table.finish(str(index), pb.Operation(state=DONE))
        await poll(table, ack=[str(index)])
    known = [index for index in range(50) if not (await poll(table, check=[str(index)]))[1]]
    assert 0 < len(known) < 15
    assert known[-1] == 49


async def test_acknowledged_outcomes_are_dropped_beyond_their_number():
    table = OperationTable(max_retained=10)
    ids = [str(index) for index in range(50)]
    for operation_id in ids:
        table.open(operation_id, client_id="c", verb="forward", digest=b"")
        table.finish(operation_id, pb.Operation(state=DONE))
    assert await poll(table, check=ids) == (ids, [])  # not one of those that nobody has acknowledged
    assert await poll(table, ack=ids[:30]) == (ids[30:], [])
    assert (await poll(table, check=ids))[1] == ids[:20]
    await poll(table, ack=ids[30:])
    assert (await poll(table, check=ids))[1] == ids[:40]


async def test_several_who_wait_for_one_operation_all_hear_of_it():
    table = opened("a")
    waiting = [asyncio.create_task(table.wait("a", 30)) for _ in range(3)]
    await asyncio.sleep(0)
    table.finish("a", pb.Operation(state=DONE))
    assert [operation.state for operation in await asyncio.gather(*waiting)] == [DONE] * 3


async def test_a_kept_outcome_costs_little_more_than_its_bytes():
    outcome = pb.Operation(state=DONE, error={"message": "x" * 300})
    num_entries = 4000

    async def one(table, index):
        table.open(f"run-0123456789ab:{index}", client_id=f"client-{index}", verb="forward", digest=bytes(32))
        table.finish(f"run-0123456789ab:{index}", pb.Operation(state=DONE, error=outcome.error))
        await poll(table, ack=[f"run-0123456789ab:{index}"], client=f"client-{index}")

    table = OperationTable(max_retained=num_entries)
    await one(table, -1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for index in range(num_entries):
            await one(table, index)
        each = (tracemalloc.get_traced_memory()[0] - before) / num_entries
        for index in range(num_entries, 2 * num_entries):  # as many again, which take the place of the first
            await one(table, index)
        later = (tracemalloc.get_traced_memory()[0] - before) / num_entries
    finally:
        tracemalloc.stop()
    assert each < outcome.ByteSize() + 500
    assert later < each + 50


async def test_unclaimed_outcomes_expire_much_later():
    clock = Clock()
    table = opened("a", clock=clock, unclaimed_s=1000)
    table.finish("a", pb.Operation(state=DONE))
    clock.now = 999
    assert await poll(table) == (["a"], [])
    clock.now = 1001
    assert await poll(table, check=["a"]) == ([], ["a"])


async def test_big_outcomes_come_in_several_polls(monkeypatch):
    monkeypatch.setattr("farstep_serving.operations.MAX_POLL_BYTES", 100)
    table = opened("a", "b")
    for operation_id in "ab":
        error = {"message": "x" * 90}
        table.finish(operation_id, pb.Operation(state=DONE, error=error))
    assert await poll(table) == (["a"], [])
    assert await poll(table, ack=["a"]) == (["b"], [])


async def test_draining_frees_parked_polls_and_takes_nothing_new():
    table = opened("a")
    waiting = asyncio.create_task(poll(table, wait_s=30))
    looking = asyncio.create_task(table.wait("a", 30))
    await asyncio.sleep(0)
    table.drain()
    assert await asyncio.wait_for(waiting, 1) == ([], [])
    assert (await asyncio.wait_for(looking, 1)).state == pb.OPERATION_STATE_QUEUED
    with pytest.raises(Draining):
        table.open("b", client_id="c", verb="forward", digest=b"d")


async def test_idle_clients_leave_nothing_behind():
    table = opened("a")
    table.finish("a", pb.Operation(state=DONE))
    await poll(table, ack=["a"])
    for index in range(100):
        await poll(table, client=f"visitor-{index}")
    assert table._channels == {}


async def test_two_polls_of_one_client_are_both_answered():
    """A client that lost its connection asks again while the server still holds its first poll."""
    table = OperationTable()
    first = asyncio.create_task(poll(table, wait_s=0.01))
    second = asyncio.create_task(poll(table, wait_s=30))
    assert await first == ([], [])
    table.open("a", client_id="c", verb="forward", digest=b"d")
    table.finish("a", pb.Operation(state=DONE))
    assert await asyncio.wait_for(second, 1) == (["a"], [])


async def test_a_table_is_settled_once_those_who_listen_have_heard():
    now = [100.0]
    table = OperationTable(clock=lambda: now[0])
    assert table.is_settled
    table.open("a", client_id="me", verb="sample", digest=b"")
    assert not table.is_settled
    parked = asyncio.create_task(table.poll(pb.PollRequest(client_id="me", wait_s=5)))
    await asyncio.sleep(0)
    now[0] += 3600
    assert not table.is_settled  # it listens, however long
    table.finish("a", pb.Operation(state=pb.OPERATION_STATE_SUCCEEDED))
    assert not table.is_settled
    assert [operation.operation_id for operation in (await parked).finished] == ["a"]
    assert table.is_settled  # heard, if not acknowledged
    table.open("b", client_id="gone", verb="sample", digest=b"")
    assert not table.is_settled
    now[0] += 3
    assert table.is_settled  # it never asked


async def test_it_tells_for_how_long_nothing_has_been_pending():
    clock = Clock()
    table = OperationTable(clock=clock)
    clock.now = 5
    assert (table.num_pending, table.idle_s) == (0, 5)
    table.open("a", client_id="c", verb="forward", digest=b"d")
    table.open("a", client_id="other", verb="forward", digest=b"d")  # one operation all the same
    table.restore("b", clients=("c",), verb="forward", digest=b"d")
    table.restore(
        "c", clients=("c",), verb="forward", digest=b"d", outcome=pb.Operation(state=DONE).SerializeToString()
    )
    clock.now = 9
    assert (table.num_pending, table.idle_s) == (2, 0)
    table.finish("a", pb.Operation(state=DONE))
    assert (table.num_pending, table.idle_s) == (1, 0)
    table.cancel("b")
    clock.now = 12
    assert (table.num_pending, table.idle_s) == (0, 3)
