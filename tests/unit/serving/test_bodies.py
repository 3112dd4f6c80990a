"""What bodies take together, for as long as somebody has them; and who decodes beside whom."""

import asyncio

import pytest
from starlette.requests import Request

from farstep_proto.errors import PayloadTooLarge, TooManyRequests
from farstep_serving.bodies import MAX_BODY_BYTES, Bodies, BodyLimits, declared_bytes

LIMITS = BodyLimits(max_bytes=1 << 20, max_decoding=2)
SIZE = 400_000


def request_of(content=bytes(SIZE), *, declared=None, piece=100_000):
    pieces = [content[start : start + piece] for start in range(0, len(content), piece)]
    messages = [{"type": "http.request", "body": each, "more_body": True} for each in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return messages.pop(0)

    length = str(len(content) if declared is None else declared)
    return Request({"type": "http", "headers": [(b"content-length", length.encode())]}, receive)


async def test_a_body_counts_as_long_as_it_is_held():
    bodies = Bodies(LIMITS)
    async with bodies.held(request_of(), limit=SIZE) as first, bodies.held(request_of(), limit=SIZE) as second:
        assert len(first) == len(second) == SIZE
        with pytest.raises(TooManyRequests):
            await bodies.read(request_of(), limit=SIZE)
    for _ in range(5):
        assert len(await bodies.read(request_of(), limit=SIZE)) == SIZE


async def test_what_a_body_has_grown_to_counts_as_well():
    bodies = Bodies(LIMITS)
    async with bodies.held(request_of(), limit=SIZE):
        with bodies.grown(600_000), pytest.raises(TooManyRequests):
            await bodies.read(request_of(), limit=SIZE)
        with pytest.raises(TooManyRequests), bodies.grown(700_000):
            pass
        await bodies.read(request_of(), limit=SIZE)


async def test_whoever_fails_with_a_body_gives_its_room_back():
    bodies = Bodies(LIMITS)
    for _ in range(5):
        with pytest.raises(RuntimeError):
            async with bodies.held(request_of(), limit=SIZE):
                raise RuntimeError
        with pytest.raises(PayloadTooLarge):
            await bodies.read(request_of(declared=0), limit=SIZE - 1)
    await bodies.read(request_of(), limit=SIZE)


async def test_the_beginning_of_what_is_too_large_can_be_read():
    bodies = Bodies(LIMITS)
    content = bytes(range(250)) * 2000
    request = request_of(content)
    assert declared_bytes(request) == len(content)
    assert await bodies.head(request, num_bytes=150_000) == content[:150_000]
    assert await bodies.head(request_of(b"short"), num_bytes=150_000) == b"short"


async def test_the_largest_are_decoded_one_at_a_time_and_keep_no_place_from_others():
    bodies, running, most = Bodies(LIMITS), [], []

    async def decode(num_bytes):
        async with bodies.decoding(num_bytes):
            running.append(num_bytes)
            most.append(sorted(running))
            await asyncio.sleep(0)
            running.remove(num_bytes)

    large = MAX_BODY_BYTES + 1
    await asyncio.gather(*(decode(num_bytes) for num_bytes in (large, large, large, SIZE, SIZE, SIZE, 100)))
    assert max(each.count(large) for each in most) == 1
    assert max(sum(size > 100 for size in each) for each in most) == 2
    assert [SIZE, large] in most
