"""The policy feed over a real gRPC connection."""

import asyncio
import dataclasses
import hashlib
from contextlib import asynccontextmanager

import grpc
import pytest

from farstep_proto.errors import NotFound, Unauthenticated, Unavailable
from farstep_proto.v1 import feed_pb2 as pb
from farstep_proto.v1.feed_pb2_grpc import PolicyFeedStub
from farstep_serving.keys import Caller, KeyRing
from farstep_worker.feed import CHUNK_BYTES, FeedServer, Policy, PolicyFeed

KEY = "fsk-test"


def policy(run_id, version, data=b"weights"):
    return Policy.of(run_id, version=version, data=data, published_at=float(version))


@pytest.fixture
async def feed():
    feed = PolicyFeed(KeyRing.of(KEY))
    server = FeedServer(feed)
    feed.address = await server.start("127.0.0.1", 0)
    yield feed
    await server.stop()


@asynccontextmanager
async def subscription(feed, *, key=KEY, have=None):
    async with grpc.aio.insecure_channel(feed.address) as channel:
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        request = pb.SubscribeRequest(subscriber="test", have=have or {})
        yield PolicyFeedStub(channel).Subscribe(request, metadata=metadata)


async def receive(call):
    header = (await asyncio.wait_for(call.read(), 5)).header
    data = b""
    while len(data) < header.num_bytes:
        chunk = (await asyncio.wait_for(call.read(), 5)).chunk
        assert len(chunk) <= CHUNK_BYTES
        data += chunk
    assert hashlib.sha256(data).hexdigest() == header.sha256
    return header, data


async def silent(call):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(call.read(), 0.1)


async def test_a_subscriber_gets_the_newest_of_every_run_and_then_each_new_one(feed):
    feed.offer(policy("a", 1))
    feed.offer(policy("a", 2, b"newest"))
    feed.offer(policy("b", 1))
    async with subscription(feed) as call:
        first = [await receive(call) for _ in range(2)]
        assert [(header.run_id, header.version) for header, _ in first] == [("a", 2), ("b", 1)]
        assert first[0][1] == b"newest"
        assert first[0][0].published_at == 2.0
        feed.offer(policy("b", 2))
        assert (await receive(call))[0].version == 2


async def test_what_the_subscriber_has_is_not_sent(feed):
    feed.offer(policy("a", 3))
    feed.offer(policy("b", 5))
    async with subscription(feed, have={"a": 3, "b": 4}) as call:
        assert (await receive(call))[0].run_id == "b"
        await silent(call)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
async def test_any_size_arrives_in_chunks(feed, size):
    data = bytes(i % 251 for i in range(size))
    feed.offer(policy("a", 1, data))
    async with subscription(feed) as call:
        assert (await receive(call))[1] == data


@pytest.mark.parametrize("key", ["wrong", ""])
async def test_a_wrong_token_is_refused(feed, key):
    feed.offer(policy("a", 1))
    async with subscription(feed, key=key) as call:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert KEY not in caught.value.details()


async def test_a_slow_subscriber_skips_to_the_latest_and_holds_up_nobody(feed):
    async with subscription(feed) as slow, subscription(feed) as fast:
        feed.offer(policy("a", 1))
        await receive(slow)
        await receive(fast)
        data = bytes(4 * CHUNK_BYTES)
        for version in range(2, 42):  # 160 MiB: far more than the transport keeps for one that does not read
            feed.offer(policy("a", version, data))
            assert (await receive(fast))[0].version == version
        versions = []
        while not versions or versions[-1] != 41:
            versions.append((await receive(slow))[0].version)
        assert versions == sorted(versions)
        assert len(versions) < 10


async def test_subscribers_that_leave_are_forgotten(feed):
    async with subscription(feed) as call:
        feed.offer(policy("a", 1))
        await receive(call)
    feed.offer(policy("a", 2))
    async with subscription(feed) as call:
        assert (await receive(call))[0].version == 2


async def test_a_taken_port_is_an_error(feed):
    port = int(feed.address.rpartition(":")[2])
    with pytest.raises(SystemExit, match=str(port)):
        await FeedServer(PolicyFeed(KeyRing.of())).start("127.0.0.1", port)


async def fetched(feed, version, *, history="", key=KEY):
    async with grpc.aio.insecure_channel(feed.address) as channel:
        metadata = (("authorization", f"Bearer {key}"),)
        request = pb.FetchRequest(run_id="a", version=version, history=history)
        return await receive(PolicyFeedStub(channel).Fetch(request, metadata=metadata))


async def test_another_history_is_sent_whatever_the_subscriber_has(feed):
    feed.offer(Policy.of("a", version=1, data=b"x", published_at=1.0, history="new"))
    async with grpc.aio.insecure_channel(feed.address) as channel:
        request = pb.SubscribeRequest(have={"a": 7}, histories={"a": "old"})
        call = PolicyFeedStub(channel).Subscribe(request, metadata=(("authorization", f"Bearer {KEY}"),))
        header, _ = await receive(call)
        assert (header.version, header.history) == (1, "new")
        same = pb.SubscribeRequest(have={"a": 7}, histories={"a": "new"})
        await silent(PolicyFeedStub(channel).Subscribe(same, metadata=(("authorization", f"Bearer {KEY}"),)))


async def test_an_old_policy_is_fetched_by_its_number(feed):
    data = bytes(2 * CHUNK_BYTES + 5)
    old = Policy.of("a", version=1, data=data, published_at=1.0, history="h", config=b"{}")

    def read(run_id, version, history):
        if (run_id, version) != ("a", 1) or history not in ("", "h"):
            raise NotFound(f"version {version} of {run_id} is not kept any more")
        return old

    feed._read = read
    feed.offer(Policy.of("a", version=2, data=b"newest", published_at=2.0, history="h"))
    header, received = await fetched(feed, 1, history="h")
    assert (header.version, header.history, header.adapter_config, received) == (1, "h", b"{}", data)
    assert (await fetched(feed, 2))[1] == b"newest"
    for version, history in ((3, "h"), (1, "other")):
        with pytest.raises(grpc.aio.AioRpcError, match="not kept any more") as caught:
            await fetched(feed, version, history=history)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetched(feed, 1, key="wrong")
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


class Revocable:
    """Keys that can be taken back; nobody can tell while it is `away`."""

    def __init__(self):
        self.callers = {}
        self.is_away = False

    async def identify(self, authorization):
        if self.is_away:
            raise Unavailable("nobody there")
        try:
            return self.callers[authorization]
        except KeyError:
            raise Unauthenticated("wrong key") from None


async def test_a_subscription_ends_when_its_key_is_revoked_and_not_because_nobody_can_tell():
    keys = Revocable()
    keys.callers["Bearer fsk-anne"] = Caller("1", "anne")
    feed = PolicyFeed(keys, check_again_s=0.02)
    server = FeedServer(feed)
    feed.address = await server.start("127.0.0.1", 0)
    async with subscription(feed, key="fsk-anne") as call:
        await asyncio.sleep(0)
        feed.offer(policy("b", 1))
        feed.offer(dataclasses.replace(policy("a", 1), project="anne"))
        assert (await receive(call))[0].run_id == "a"
        keys.is_away = True
        await silent(call)
    async with subscription(feed, key="fsk-anne") as call:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        keys.is_away = False
    async with subscription(feed, key="fsk-anne") as call:
        assert (await receive(call))[0].project == "anne"
        keys.callers.clear()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(call.read(), 10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    await server.stop()
