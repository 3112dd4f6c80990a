"""A worker's feed and many replicas' ends of it, over real connections in one process."""

import asyncio
import random
import time
import tracemalloc
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from farstep_proto.v1 import feed_pb2 as pb
from farstep_proto.v1.feed_pb2_grpc import PolicyFeedStub
from farstep_sampler.feed import FeedClient, FeedConfig
from farstep_sampler.versions import PolicyId
from farstep_serving.keys import KeyRing
from farstep_worker.feed import FeedServer, Policy, PolicyFeed

KEY = "fsk-test"
NUM_REPLICAS = 32


class Subscriber:
    """A replica as the feed sees it: what it has, and what it was given; `is_slow` ones take their time."""

    def __init__(self, address, name):
        self.have, self.given = {}, []
        self.client = FeedClient(FeedConfig(address, KEY, name), have=lambda: dict(self.have), deliver=self.deliver)
        self.task = None

    def deliver(self, policy, data):
        assert policy.version > self.have.get(policy.source, 0)
        assert data == content(policy.source, policy.version)
        self.have[policy.source] = policy.version
        self.given.append(policy)

    def start(self):
        self.task = asyncio.create_task(self.client.run())

    async def die(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def content(run_id, version):
    return random.Random(f"{run_id}{version}").randbytes(200_000)


def offer(feed, run_id, version):
    feed.offer(Policy.of(run_id, version=version, data=content(run_id, version), published_at=1.0, history="h"))


@asynccontextmanager
async def served(port=0, feed=None):
    feed = feed or PolicyFeed(KeyRing.of(KEY))
    server = FeedServer(feed)
    address = await server.start("127.0.0.1", port)
    try:
        yield feed, address
    finally:
        await server.stop()


async def eventually(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_thirty_two_replicas_follow_while_half_of_them_die_and_come_back():
    """Every one has the newest of both runs in the end, none gets a version twice or out of order."""
    async with served() as (feed, address):
        replicas = [Subscriber(address, f"replica-{i}") for i in range(NUM_REPLICAS)]
        for replica in replicas:
            replica.start()
        await eventually(lambda: len(feed._subscribers) == NUM_REPLICAS)
        for version in range(1, 6):
            offer(feed, "a", version)
            offer(feed, "b", version)
            await asyncio.sleep(0.02)
        mortal = replicas[::2]
        await asyncio.gather(*(replica.die() for replica in mortal))
        await eventually(lambda: len(feed._subscribers) == NUM_REPLICAS // 2)
        for version in range(6, 11):
            offer(feed, "a", version)
        for number, replica in enumerate(mortal):
            if number % 2:
                replica.have.clear()  # a new process
            replica.start()
        for version in range(11, 16):
            offer(feed, "a", version)
            await asyncio.sleep(0.02)
        await eventually(lambda: all(replica.have == {"a": 15, "b": 5} for replica in replicas))
        assert not any(replica.task.done() for replica in replicas), "whoever was given something twice has ended"
        await asyncio.gather(*(replica.die() for replica in replicas))


async def test_replicas_that_do_not_read_cost_the_trainer_neither_time_nor_memory():
    """Twenty-eight subscribe and read nothing while sixty versions of 2 MB go out; four follow all along."""
    async with served() as (feed, address), grpc.aio.insecure_channel(address) as channel:
        metadata = (("authorization", f"Bearer {KEY}"),)
        still = [PolicyFeedStub(channel).Subscribe(pb.SubscribeRequest(), metadata=metadata) for _ in range(28)]
        newest = [0] * 4

        def follow(index):
            def deliver(policy, data):
                newest[index] = policy.version

            config = FeedConfig(address, KEY, f"live-{index}")
            return asyncio.create_task(FeedClient(config, have=dict, deliver=deliver).run())

        live = [follow(index) for index in range(4)]
        await eventually(lambda: len(feed._subscribers) == NUM_REPLICAS)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        longest_s = 0.0
        for version in range(1, 61):
            policy = Policy.of("r", version=version, data=bytes(2 << 20), published_at=1.0)
            began = time.perf_counter()
            feed.offer(policy)
            longest_s = max(longest_s, time.perf_counter() - began)
            del policy
            await asyncio.sleep(0.01)
        await eventually(lambda: newest == [60] * 4)
        held = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert held < 30 << 20  # of 120 MB: the newest, and what is on its way to somebody
        assert longest_s < 0.1  # an offer only notes; to wait for a reader would take for ever
        assert all(len(subscriber.waiting) <= 1 for subscriber in feed._subscribers)
        for end in (*still, *live):
            end.cancel()
        await asyncio.gather(*live, return_exceptions=True)


async def test_a_worker_that_comes_back_is_found_by_all():
    async with served() as (feed, address):
        replicas = [Subscriber(address, f"replica-{i}") for i in range(8)]
        for replica in replicas:
            replica.start()
        offer(feed, "a", 1)
        await eventually(lambda: all(replica.have == {"a": 1} for replica in replicas))
    port = int(address.rpartition(":")[2])
    async with served(port) as (feed, _):
        offer(feed, "a", 2)
        await eventually(lambda: all(replica.have == {"a": 2} for replica in replicas))
        await asyncio.gather(*(replica.die() for replica in replicas))
    assert all(replica.given == [PolicyId("a", 1, "h"), PolicyId("a", 2, "h")] for replica in replicas)
