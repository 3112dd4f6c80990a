"""The feed client against a real gRPC server that sends good, damaged and interrupted streams."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from farstep_proto.errors import InvalidInput
from farstep_proto.v1 import feed_pb2 as pb
from farstep_proto.v1.feed_pb2_grpc import PolicyFeedServicer, add_PolicyFeedServicer_to_server
from farstep_sampler.feed import FeedClient, FeedConfig, assemble
from farstep_sampler.versions import PolicyId

KEY = "fsk-secret"
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def events_of(run_id: str, version: int, data: bytes, *, size: int = 1000, sha256: str = "") -> list[pb.PolicyEvent]:
    digest = sha256 or hashlib.sha256(data).hexdigest()
    header = pb.PolicyHeader(run_id=run_id, version=version, num_bytes=len(data), sha256=digest)
    chunks = [pb.PolicyEvent(chunk=data[start : start + size]) for start in range(0, len(data), size)]
    return [pb.PolicyEvent(header=header), *chunks]


@dataclass
class Feed(PolicyFeedServicer):  # type: ignore[misc]
    """Answers subscription number n with `streams[n]`; after the last stream it stays silent."""

    streams: list[list[pb.PolicyEvent]]
    requests: list[pb.SubscribeRequest] = field(default_factory=list)

    async def Subscribe(self, request: pb.SubscribeRequest, context: Any) -> AsyncIterator[pb.PolicyEvent]:
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != f"Bearer {KEY}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong key")
        self.requests.append(request)
        if len(self.requests) > len(self.streams):
            await asyncio.sleep(3600)
        for event in self.streams[len(self.requests) - 1]:
            yield event


@asynccontextmanager
async def following(
    feed: Feed, *, port: int = 0, key: str = KEY, delivered: dict[PolicyId, bytes]
) -> AsyncIterator[asyncio.Task[None]]:
    """A server with the feed, and a client that follows it and remembers what came."""
    server = grpc.aio.server()
    add_PolicyFeedServicer_to_server(feed, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    client = FeedClient(
        FeedConfig(f"127.0.0.1:{port}", key, "test"),
        have=lambda: {policy.source: policy.version for policy in delivered},
        deliver=delivered.__setitem__,
    )
    task = asyncio.create_task(client.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(None)


async def test_chunks_become_whole_policies(until: Until) -> None:
    delivered: dict[PolicyId, bytes] = {}
    first, second = b"a" * 3500, b"b" * (3 << 20)
    feed = Feed([events_of("r", 1, first) + events_of("s", 4, second, size=2 << 20), []])
    async with following(feed, delivered=delivered):
        await until(lambda: len(delivered) == 2)
    assert delivered == {PolicyId("r", 1): first, PolicyId("s", 4): second}
    assert feed.requests[0].subscriber == "test"


async def test_an_interrupted_stream_is_taken_up_with_what_is_there(until: Until) -> None:
    delivered: dict[PolicyId, bytes] = {}
    feed = Feed([events_of("r", 1, b"x" * 10) + events_of("r", 2, b"y" * 5000)[:3], events_of("r", 2, b"y" * 5000)])
    async with following(feed, delivered=delivered):
        await until(lambda: len(delivered) == 2)
    assert delivered[PolicyId("r", 2)] == b"y" * 5000
    assert [dict(request.have) for request in feed.requests[:2]] == [{}, {"r": 1}]


async def test_a_damaged_policy_is_never_delivered_and_asked_for_again(until: Until) -> None:
    delivered: dict[PolicyId, bytes] = {}
    feed = Feed([events_of("r", 1, b"bad", sha256="0" * 64), events_of("r", 1, b"good")])
    async with following(feed, delivered=delivered):
        await until(lambda: bool(delivered))
    assert delivered == {PolicyId("r", 1): b"good"}


async def test_a_worker_that_was_away_is_found_again(until: Until) -> None:
    delivered: dict[PolicyId, bytes] = {}
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    client = FeedClient(FeedConfig(f"127.0.0.1:{port}", KEY, "test"), have=dict, deliver=delivered.__setitem__)
    task = asyncio.create_task(client.run())
    await asyncio.sleep(0.2)  # nobody answers yet
    add_PolicyFeedServicer_to_server(Feed([events_of("r", 3, b"late")]), server)
    await server.start()
    try:
        await until(lambda: bool(delivered))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(None)
    assert delivered == {PolicyId("r", 3): b"late"}


async def test_a_wrong_key_is_refused_and_the_client_stays(caplog: pytest.LogCaptureFixture, until: Until) -> None:
    delivered: dict[PolicyId, bytes] = {}
    async with following(Feed([events_of("r", 1, b"x")]), key="wrong", delivered=delivered) as task:
        await until(lambda: "UNAUTHENTICATED" in caplog.text)
        assert not task.done()
    assert not delivered
    assert "wrong key" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([pb.PolicyEvent(chunk=b"x")], "without a header"),
        (events_of("r", 1, b"x" * 50)[:1] + events_of("r", 2, b"y"), "ended after 0 bytes"),
        ([*events_of("r", 1, b"x" * 50)[:1], pb.PolicyEvent(chunk=b"x" * 51)], "51 bytes instead of 50"),
        (events_of("a/b", 1, b"x"), "not a run id"),
        (events_of("r", 0, b"x"), "no published version"),
        (events_of("r", 1, b""), "0 bytes"),
    ],
)
async def test_nonsense_is_refused(events: list[pb.PolicyEvent], says: str) -> None:
    async def stream() -> AsyncIterator[pb.PolicyEvent]:
        for event in events:
            yield event

    with pytest.raises(InvalidInput, match=says):
        _ = [policy async for policy in assemble(stream())]
