"""The policy feed: published policies on their way to samplers, over one gRPC stream each.

It numbers nothing and knows no adapter: a policy is bytes with a run and a version. It keeps the newest of
every run, for subscribers that come later; an older one is fetched by its number, where it is still kept.

Invariant: a subscriber gets each run's versions in rising order and the newest one in the end; one that is
slow skips versions in between and holds up nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from farstep_proto.errors import ApiError, InvalidInput, NotFound, Unauthenticated, Unavailable
from farstep_proto.names import check_run_id
from farstep_proto.v1 import feed_pb2 as pb
from farstep_proto.v1 import feed_pb2_grpc
from farstep_serving.keys import Caller, Keys

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10  # one or two of them are held for each subscriber that does not read
CHECK_AGAIN_S = 10.0
_MOST_READS = 4
_SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
    ("grpc.keepalive_time_ms", 30_000),  # finds subscribers that vanished
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


@dataclass(frozen=True, slots=True)
class Policy:
    """One version of a run's adapter, as the bytes that samplers load."""

    run_id: str
    version: int
    data: bytes
    sha256: str  # hex, of `data`
    published_at: float  # seconds since the epoch
    history: str = ""  # of the run's numbering
    config: bytes = b""  # PEFT's, where `data` does not have it in itself
    project: str = ""  # whose the run is; empty: the operators'

    @classmethod
    def of(
        cls,
        run_id: str,
        *,
        version: int,
        data: bytes,
        published_at: float,
        history: str = "",
        config: bytes = b"",
        project: str = "",
    ) -> Policy:
        return cls(run_id, version, data, hashlib.sha256(data).hexdigest(), published_at, history, config, project)


@dataclass(slots=True, eq=False)
class _Subscriber:
    caller: Caller
    waiting: dict[str, Policy] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def give(self, policy: Policy) -> None:
        """Has it sent a policy, if it may see it."""
        if not self.caller.may_see(policy.project):
            return
        self.waiting[policy.run_id] = policy
        self.changed.set()


class PolicyFeed(feed_pb2_grpc.PolicyFeedServicer):
    """The service; all of it lives on the event loop. A project's key brings that project's policies.

    Args:
        check_again_s: how often the key of a subscriber that stays is looked at again: it may have been revoked.
        read: gives an old policy by run, version and history, or raises NotFound; it blocks, and is called on
            another thread.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        read: Callable[[str, int, str], Policy] | None = None,
        check_again_s: float = CHECK_AGAIN_S,
    ) -> None:
        self._keys = keys
        self._check_again_s = check_again_s
        self._read = read
        self._reading = asyncio.Semaphore(_MOST_READS)
        self._newest: dict[str, Policy] = {}
        self._subscribers: set[_Subscriber] = set()

    def offer(self, policy: Policy) -> None:
        """Makes a policy the newest of its run; never waits for a subscriber."""
        self._newest[policy.run_id] = policy
        for subscriber in self._subscribers:
            subscriber.give(policy)

    def forget(self, run_id: str) -> None:
        """Offers nothing more of a run; samplers keep what they have until they need the room."""
        self._newest.pop(run_id, None)
        for subscriber in self._subscribers:
            subscriber.waiting.pop(run_id, None)

    async def Subscribe(  # noqa: N802
        self, request: pb.SubscribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.PolicyEvent]:
        subscriber = _Subscriber(await self._identify(context))
        for policy in self._newest.values():
            if _is_missing(policy, request):
                subscriber.give(policy)
        self._subscribers.add(subscriber)
        log.info("%s subscribed to the policy feed", request.subscriber or context.peer())
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._check_again_s):
                        await subscriber.changed.wait()
                await self._check_still_good(context)
                subscriber.changed.clear()
                while subscriber.waiting:
                    policy = subscriber.waiting.pop(next(iter(subscriber.waiting)))
                    for event in _events_of(policy):
                        yield event
        finally:
            self._subscribers.discard(subscriber)

    async def Fetch(  # noqa: N802
        self, request: pb.FetchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.PolicyEvent]:
        caller = await self._identify(context)
        async with self._reading:  # so many at most are held in memory at a time
            try:
                policy = await self._find_for(caller, request)
            except (NotFound, InvalidInput) as error:
                await context.abort(grpc.StatusCode.NOT_FOUND, error.message)
            except ApiError as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
            for event in _events_of(policy):
                yield event

    async def _find_for(self, caller: Caller, request: pb.FetchRequest) -> Policy:
        """Raises as `_find`; who has a project's key learns nothing of what others have."""
        unknown = NotFound(f"version {request.version} of {request.run_id} is not kept")
        try:
            policy = await self._find(request)
        except (NotFound, InvalidInput):
            if caller.is_operator:
                raise
            raise unknown from None
        if not caller.may_see(policy.project):
            raise unknown
        return policy

    async def _find(self, request: pb.FetchRequest) -> Policy:
        check_run_id(request.run_id)
        newest = self._newest.get(request.run_id)
        if newest is not None and newest.version == request.version and request.history in ("", newest.history):
            return newest
        if self._read is None:
            raise NotFound(f"version {request.version} of {request.run_id} is not kept")
        return await asyncio.to_thread(self._read, request.run_id, request.version, request.history)

    async def _identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
        try:
            return await self._keys.identify(_authorization(context))
        except Unauthenticated as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{error.message}: {error.hint}")
        except ApiError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{error.message}: {error.hint}")

    async def _check_still_good(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Ends a subscription whose key was revoked; while nobody can tell, it goes on."""
        try:
            await self._keys.identify(_authorization(context))
        except Unauthenticated as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, f"{error.message}: {error.hint}")
        except Unavailable:
            pass


def _authorization(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return metadata.get("authorization", "")


class FeedServer:
    """The feed on its port, from `start` to `stop`."""

    def __init__(self, feed: PolicyFeed) -> None:
        self._feed = feed
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Listens, and returns `host:port`.

        Raises:
            SystemExit: the address is taken or not ours.
        """
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        feed_pb2_grpc.add_PolicyFeedServicer_to_server(self._feed, self._server)
        bracketed = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{bracketed}:{port}")
        except RuntimeError as error:
            raise SystemExit(f"cannot listen on {bracketed}:{port} for the policy feed") from error
        await self._server.start()
        return f"{bracketed}:{bound}"

    async def stop(self) -> None:
        """Ends every subscription at once."""
        if self._server is not None:
            await self._server.stop(grace=None)


def _is_missing(policy: Policy, request: pb.SubscribeRequest) -> bool:
    """Whether the subscriber lacks a policy: it has an older one, or one of another history, if it knows of which."""
    if policy.run_id not in request.have:
        return True
    history = request.histories.get(policy.run_id) or policy.history
    return history != policy.history or policy.version > request.have[policy.run_id]


def _events_of(policy: Policy) -> Iterator[pb.PolicyEvent]:
    header = pb.PolicyHeader(
        run_id=policy.run_id,
        version=policy.version,
        num_bytes=len(policy.data),
        sha256=policy.sha256,
        published_at=policy.published_at,
        history=policy.history,
        adapter_config=policy.config,
        project=policy.project,
    )
    yield pb.PolicyEvent(header=header)
    for start in range(0, len(policy.data), CHUNK_BYTES):
        yield pb.PolicyEvent(chunk=policy.data[start : start + CHUNK_BYTES])
