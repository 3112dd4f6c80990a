"""Lists of samples that have ended, by cursor."""

import asyncio

import pytest

from farstep_infra.gateway.completions import Completions
from farstep_proto.errors import NotFound
from farstep_proto.v1 import operations_pb2

SESSION = "s:sample:0"


def names(ended):
    return [each.request_id for each in ended]


async def test_each_is_told_once_in_order():
    completions = Completions()
    for seq in range(3):
        completions.note(f"{SESSION}:{seq}", failed=seq == 1, num_bytes=seq)
    ended, cursor = await completions.after(SESSION, 0, cursor=0, wait_s=0)
    assert names(ended) == [f"{SESSION}:{seq}" for seq in range(3)]
    assert [each.failed for each in ended] == [False, True, False]
    assert await completions.after(SESSION, 0, cursor=cursor, wait_s=0) == ([], cursor)
    completions.note(f"{SESSION}:3", failed=False)
    again = [await completions.after(SESSION, 0, cursor=cursor, wait_s=0) for _ in range(2)]
    assert again[0] == again[1]
    assert names(again[0][0]) == [f"{SESSION}:3"]


async def test_an_outcome_that_comes_again_is_told_once():
    """As after a repeated submission, as long as nobody has seen it."""
    completions = Completions()
    for _ in range(3):
        completions.note(f"{SESSION}:5", failed=False)
    ended, cursor = await completions.after(SESSION, 0, cursor=0, wait_s=0)
    assert names(ended) == [f"{SESSION}:5"]
    assert await completions.after(SESSION, 0, cursor=cursor, wait_s=0) == ([], cursor)
    completions.note(f"{SESSION}:5", failed=False)
    assert names((await completions.after(SESSION, 0, cursor=cursor, wait_s=0))[0]) == [f"{SESSION}:5"]


async def test_who_waits_hears_at_once():
    completions = Completions()
    waiting = asyncio.create_task(completions.after(SESSION, 0, cursor=0, wait_s=60))
    await asyncio.sleep(0)
    outcome = operations_pb2.Operation(operation_id=f"{SESSION}:7")
    outcome.sample.SetInParent()
    completions.note_outcome(outcome)
    ended, _ = await asyncio.wait_for(waiting, 30)
    assert names(ended) == [f"{SESSION}:7"]
    assert not ended[0].failed
    waiting = asyncio.create_task(completions.after(SESSION, 1, cursor=0, wait_s=60))
    await asyncio.sleep(0)
    completions.release()
    assert (await asyncio.wait_for(waiting, 30))[0] == []


async def test_copies_of_a_client_and_other_things_have_lines_of_their_own():
    completions = Completions()
    for request_id in (f"{SESSION}:1", f"{SESSION}:2000000001", "s:sample:1:1", "s:train:0:1", "run-1:3", ""):
        completions.note(request_id, failed=False)
    assert names((await completions.after(SESSION, 0, cursor=0, wait_s=0))[0]) == [f"{SESSION}:1"]
    assert names((await completions.after(SESSION, 2, cursor=0, wait_s=0))[0]) == [f"{SESSION}:2000000001"]


async def test_another_processs_cursor_is_refused():
    earlier, later = Completions(), Completions()
    while earlier._epoch == later._epoch:
        later = Completions()
    earlier.note(f"{SESSION}:1", failed=False)
    _, cursor = await earlier.after(SESSION, 0, cursor=0, wait_s=0)
    with pytest.raises(NotFound, match="started anew"):
        await later.after(SESSION, 0, cursor=cursor, wait_s=0)
