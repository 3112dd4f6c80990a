"""Logs: bounded, read from the end, followed."""

import asyncio

import pytest

from farstep_infra.launchers.logs import FileLog, last_lines


def append(log, data):
    """As a child does."""
    with open(log.path, "ab") as file:
        file.write(data)


@pytest.mark.parametrize("num_lines", [1, 3, 9999, 20_000])
async def test_the_tail_is_the_last_lines(tmp_path, num_lines):
    lines = [b"%06d %s\n" % (i, b"x" * (i % 90)) for i in range(10_000)]
    path = tmp_path / "a.log"
    path.write_bytes(b"".join(lines))
    assert await FileLog(path).tail(num_lines) == b"".join(lines[-num_lines:])


async def test_there_is_none_of_nothing(tmp_path):
    log = FileLog(tmp_path / "a.log")
    assert await log.tail(5) == b""
    log.path.write_bytes(b"one\n")
    assert await log.tail(0) == b""


def test_an_epitaph_begins_with_its_own_life(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"before\nafter\nlast")
    assert last_lines(path, 9, start=7) == [b"after\n", b"last"]
    assert last_lines(path, 9, start=1000) == [b"before\n", b"after\n", b"last"], "it was emptied since"


async def test_what_has_grown_is_set_aside_once_and_can_still_be_read(tmp_path):
    log = FileLog(tmp_path / "a.log", max_bytes=100)
    for i in range(1000):
        append(log, b"line %d\n" % i)
        log.trim()
    assert await log.tail(8) == b"".join(b"line %d\n" % i for i in range(992, 1000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 250


async def test_it_is_followed_also_when_it_begins_anew(tmp_path):
    log = FileLog(tmp_path / "a.log", max_bytes=10)
    log.path.write_bytes(b"1\n2\n3\n")
    read = b""

    async def follow():
        nonlocal read
        async for data in log.follow(2):
            read += data

    async def until(expected):
        async with asyncio.timeout(20):
            while read != expected:  # noqa: ASYNC110 - what is written to a file sets no event
                await asyncio.sleep(0.01)

    task = asyncio.create_task(follow())
    await until(b"2\n3\n")
    append(log, b"four four four\n")
    await until(b"2\n3\nfour four four\n")
    log.trim()
    await asyncio.sleep(0.5)  # it may see the file empty, or already with what follows
    append(log, b"5\n")
    await until(b"2\n3\nfour four four\n5\n")
    task.cancel()
