"""The policy feed, as a replica reads it: a gRPC stream of headers and chunks, put together and checked.

The stream is taken up again whenever it ends, with what is already here; the worker then sends the newest
policy of each run that is missing. A policy with a wrong checksum is never handed on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import grpc
import grpc.aio

from farstep_model.peft_format import CONFIG_FILE, TENSORS_FILE
from farstep_proto.errors import ApiError, Internal, InvalidInput, NotFound
from farstep_proto.names import check_run_id
from farstep_proto.v1 import feed_pb2 as pb
from farstep_proto.v1.feed_pb2_grpc import PolicyFeedStub
from farstep_sampler.recall import PolicyFiles
from farstep_sampler.versions import PolicyId

log = logging.getLogger(__name__)

_JITTER = random.Random()  # its own: what a program draws from `random` must not depend on our retries

MAX_POLICY_BYTES = 8 << 30
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0
_FETCH_S = 120.0
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 330_000),  # more often than every 5 minutes, a server hangs up
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", int(_LAST_RETRY_S * 1000)),
]


@dataclass(frozen=True, slots=True)
class FeedConfig:
    """`address` is host:port; `key` the worker's, if it asks for one; `subscriber` names this replica in its log."""

    address: str
    key: str | None
    subscriber: str


class FeedClient:
    """Follows a worker's feed.

    Args:
        have: run id -> newest version already here, asked for at every connection.
        deliver: takes each whole policy.
        history: run id -> the history of what is here of it.
    """

    def __init__(
        self,
        config: FeedConfig,
        *,
        have: Callable[[], Mapping[str, int]],
        deliver: Callable[[PolicyId, bytes], None],
        history: Callable[[str], str] = lambda run_id: "",
    ) -> None:
        self._config = config
        self._history = history
        self._have = have
        self._deliver = deliver
        self._retry_s = _FIRST_RETRY_S

    async def run(self) -> None:
        """Follows the feed for ever; every end of the stream is a reason to take it up again."""
        async with grpc.aio.insecure_channel(self._config.address, options=_CHANNEL_OPTIONS) as channel:
            while True:
                try:
                    await self._follow(PolicyFeedStub(channel))
                    log.info("the feed %s ended; taking it up again", self._config.address)
                except grpc.aio.AioRpcError as error:
                    log.warning("feed %s: %s %s", self._config.address, error.code().name, error.details())
                except ApiError as error:
                    log.warning("feed %s: %s; asking for it again", self._config.address, error.message)
                await asyncio.sleep(self._retry_s * _JITTER.uniform(0.5, 1.0))
                self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    async def _follow(self, stub: PolicyFeedStub) -> None:
        have = self._have()
        histories = {run_id: self._history(run_id) for run_id in have}
        request = pb.SubscribeRequest(subscriber=self._config.subscriber, have=have, histories=histories)
        async for header, data in assemble(stub.Subscribe(request, metadata=_metadata(self._config))):
            self._retry_s = _FIRST_RETRY_S
            self._deliver(PolicyId(header.run_id, header.version, header.history, header.project), data)


class FeedSource:
    """Old policies that a worker still keeps, by their number."""

    def __init__(self, config: FeedConfig) -> None:
        self._config = config

    async def fetch(self, policy: PolicyId) -> PolicyFiles:
        """Raises NotFound where the worker keeps it no more, another ApiError where it does not answer."""
        request = pb.FetchRequest(run_id=policy.source, version=policy.version, history=policy.history)
        try:
            async with grpc.aio.insecure_channel(self._config.address, options=_CHANNEL_OPTIONS) as channel:
                events = PolicyFeedStub(channel).Fetch(request, metadata=_metadata(self._config), timeout=_FETCH_S)
                async for header, data in assemble(events):
                    return {TENSORS_FILE: data, CONFIG_FILE: header.adapter_config}
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise NotFound(str(error.details())) from error
            raise Internal(f"the feed {self._config.address} says {error.code().name} {error.details()}") from error
        raise Internal(f"the feed {self._config.address} sent nothing for {policy}")


async def assemble(events: AsyncIterable[pb.PolicyEvent]) -> AsyncIterator[tuple[pb.PolicyHeader, bytes]]:
    """Whole policies from headers and chunks.

    Raises:
        InvalidInput: events out of order, more bytes than announced, a wrong checksum, or a bad name.
    """
    header: pb.PolicyHeader | None = None
    data = bytearray()
    async for event in events:
        if event.WhichOneof("event") == "header":
            if header is not None:
                raise InvalidInput(f"{header.run_id}@v{header.version} ended after {len(data)} bytes", field="header")
            header, data = _checked(event.header), bytearray()
        elif header is None:
            raise InvalidInput("a chunk without a header", field="chunk")
        else:
            data += event.chunk
        if header is not None and len(data) >= header.num_bytes:
            yield header, _whole(header, data)
            header = None


def _metadata(config: FeedConfig) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {config.key}"),) if config.key else ()


def _checked(header: pb.PolicyHeader) -> pb.PolicyHeader:
    check_run_id(header.run_id, field="header.run_id")
    if header.version < 1:
        raise InvalidInput(f"{header.version} is no published version", field="header.version")
    if not 0 < header.num_bytes <= MAX_POLICY_BYTES:
        raise InvalidInput(f"{header.num_bytes} bytes", field="header.num_bytes")
    return header


def _whole(header: pb.PolicyHeader, data: bytearray) -> bytes:
    name = f"{header.run_id}@v{header.version}"
    if len(data) != header.num_bytes:
        raise InvalidInput(f"{name} has {len(data)} bytes instead of {header.num_bytes}", field="chunk")
    if hashlib.sha256(data).hexdigest() != header.sha256:
        raise InvalidInput(f"{name} arrived damaged: its sha256 is not {header.sha256}", field="chunk")
    return bytes(data)
