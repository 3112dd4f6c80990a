"""Messages to and from one server over HTTP: the only importer of httpx.

Lives on the background loop. It knows media types, keys, retries and the error table, and nothing of what
the messages mean. Requests that a server parks have a lane of their own, so that they never hold up short
ones; together they stay within eight connections. Streams hold one each, beside those.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import platform
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from google.protobuf.message import DecodeError, Message

from farstep import _retry
from farstep._settings import ApiKey
from farstep.errors import FarstepError, ServerError, TransportError, error_from_refusal
from farstep_proto import paths
from farstep_proto.framing import Unframer
from farstep_proto.v1 import common_pb2, sampling_pb2

M = TypeVar("M", bound=Message)

ANSWER_S = 60.0
CONNECT_S = 10.0
KEEPALIVE_S = 60.0  # less than the servers' own, so that ours ends first
RETRY_STATUSES = frozenset({429, 502, 503, 504})
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Lane(enum.Enum):
    """Connections for short requests, for parked ones, and for the shared poll."""

    SHORT = 4
    PARKED = 3
    POLL = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `repeatable` means that arriving twice does no harm."""

    method: str
    path: str
    body: bytes = b""
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    lane: Lane = Lane.SHORT
    wait_s: float = 0.0
    repeatable: bool = True


class _Fault(Exception):
    """Worth another attempt: `error` is what to raise when there is none left."""

    def __init__(self, error: FarstepError, *, retry_after_s: float = 0.0) -> None:
        super().__init__()
        self.error = error
        self.retry_after_s = retry_after_s


class Transport:
    def __init__(self, url: str, key: ApiKey) -> None:
        self.url = url
        self._key = key
        num_connections = sum(lane.value for lane in Lane)
        self._client = _new_client(url, key, max_connections=num_connections, max_idle=num_connections)
        self._streams = _new_client(url, key, max_connections=None, max_idle=8)
        self._lanes = {lane: asyncio.Semaphore(lane.value) for lane in Lane}

    async def call(self, request: Request, reply: type[M], *, budget_s: float | None = None) -> M:
        """The server's answer; faults are retried within the budget, with the same request each time.

        Raises:
            FarstepError: the server refused, or the budget is spent.
        """
        retry = _retry.REQUEST_RETRY.within(budget_s)
        backoff = _retry.Backoff(retry, what=f"{request.method} {self.url}{request.path}")
        while True:
            try:
                return await self._attempt(request, reply)
            except _Fault as fault:
                error, retry_after_s = fault.error, fault.retry_after_s
            await asyncio.sleep(backoff.delay_s(error, at_least_s=retry_after_s))

    async def attempt(self, request: Request, reply: type[M]) -> M:
        """A single attempt."""
        try:
            return await self._attempt(request, reply)
        except _Fault as fault:
            error = fault.error
        raise error

    async def stream(self, request: Request) -> AsyncGenerator[sampling_pb2.SampleEvent, None]:
        """The events of one request as they come; a single attempt, on a connection of its own.

        Raises:
            FarstepError: the server refused, or the stream broke off.
        """
        timeout = httpx.Timeout(ANSWER_S + request.wait_s, connect=CONNECT_S, pool=None)
        unframer = Unframer()
        try:
            async with self._streams.stream(
                request.method, request.path, content=request.body, headers=request.headers, timeout=timeout
            ) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response, _error_message(response), self.url)
                if paths.PROTOBUF_STREAM not in response.headers.get("content-type", ""):
                    raise ServerError(f"{self.url} answered without a stream", hint="is it a Farstep server?")
                async for chunk in response.aiter_raw():
                    for event in _events(unframer, chunk, self.url):
                        yield event
            return
        except (httpx.TransportError, httpx.StreamError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        # Raised out here, because httpx's error holds the request and with it the key.
        raise TransportError(f"the stream from {self.url} broke off ({reason})", hint=_hint_for(self.url))

    async def ping(self, path: str, *, budget_s: float) -> None:
        """Returns when `path` answers with success, whatever it says; any failure is retried within the budget."""
        backoff = _retry.Backoff(_retry.REQUEST_RETRY.within(budget_s), what=f"waiting for {self.url}")
        while True:
            try:
                response = await self._exchange(Request("GET", path, lane=Lane.PARKED))
            except _Fault as fault:
                error = fault.error
            else:
                if response.is_success:
                    return
                error = _refusal(response, _error_message(response), self.url)
            await asyncio.sleep(backoff.delay_s(error))

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._streams.aclose()

    async def _attempt(self, request: Request, reply: type[M]) -> M:
        async with self._lanes[request.lane]:
            response = await self._exchange(request)
        if response.is_success:
            return _parse(response, reply, self.url)
        message = _error_message(response)
        is_certain = message is not None and response.status_code in (429, 503)  # it did not take the request
        error = _refusal(response, message, self.url)
        if response.status_code in RETRY_STATUSES and (request.repeatable or is_certain):
            raise _Fault(error, retry_after_s=_retry_after_s(response, message))
        raise error

    async def _exchange(self, request: Request) -> httpx.Response:
        """Raises _Fault where the request may go again, TransportError where it must not."""
        try:
            return await self._client.request(
                request.method,
                request.path,
                content=request.body or None,
                params=request.params or None,
                headers=request.headers,
                timeout=httpx.Timeout(ANSWER_S + request.wait_s, connect=CONNECT_S, pool=None),
            )
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            was_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        # Raised out here, because httpx's error holds the request and with it the key.
        fault = TransportError(f"{self.url} does not answer ({reason})", hint=_hint_for(self.url))
        if was_sent and not request.repeatable:
            raise fault
        raise _Fault(fault)


def _new_client(url: str, key: ApiKey, *, max_connections: int | None, max_idle: int) -> httpx.AsyncClient:
    headers = {
        "Accept": paths.PROTOBUF,
        "Content-Type": paths.PROTOBUF,
        "User-Agent": f"farstep Python/{platform.python_version()}",
    }
    if key.secret:
        headers["Authorization"] = f"Bearer {key.secret}"
    return httpx.AsyncClient(
        base_url=url,
        headers=headers,
        verify=ssl_context(),
        limits=httpx.Limits(
            max_connections=max_connections,
            max_keepalive_connections=max_idle,
            keepalive_expiry=KEEPALIVE_S,
        ),
        trust_env=urlsplit(url).hostname not in LOOPBACK,  # no proxy to this very machine
    )


@functools.cache
def ssl_context() -> ssl.SSLContext:
    """Shared: loading the certificates takes longer than all the rest of a client."""
    return httpx.create_ssl_context()


def _parse(response: httpx.Response, reply: type[M], url: str) -> M:
    if paths.PROTOBUF not in response.headers.get("content-type", ""):
        raise ServerError(f"{url} answered without a {reply.DESCRIPTOR.name}", hint="is it a Farstep server?")
    try:
        return reply.FromString(response.content)
    except DecodeError as error:
        raise ServerError(f"{url} answered with a malformed {reply.DESCRIPTOR.name}") from error


def _events(unframer: Unframer, chunk: bytes, url: str) -> list[sampling_pb2.SampleEvent]:
    try:
        return [sampling_pb2.SampleEvent.FromString(data) for data in unframer.push(chunk)]
    except (DecodeError, ValueError) as error:
        raise ServerError(f"{url} answered with a malformed stream") from error


def _error_message(response: httpx.Response) -> common_pb2.Error | None:
    """What a Farstep server said; None where something in between answered."""
    if paths.PROTOBUF not in response.headers.get("content-type", ""):
        return None
    try:
        message = common_pb2.Error.FromString(response.content)
    except DecodeError:
        return None
    message.status = response.status_code
    return message


def _refusal(response: httpx.Response, message: common_pb2.Error | None, url: str) -> FarstepError:
    if message is not None:
        return error_from_refusal(message)
    text = f"{url} answered with HTTP {response.status_code}"
    if response.status_code in (502, 503, 504):
        return TransportError(text)
    retry_after_s = _retry_after_s(response, None) or None
    return error_from_refusal(common_pb2.Error(status=response.status_code, message=text, retry_after_s=retry_after_s))


def _retry_after_s(response: httpx.Response, message: common_pb2.Error | None) -> float:
    if message is not None and message.HasField("retry_after_s"):
        return message.retry_after_s
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _hint_for(url: str) -> str:
    return "is it running? start one with: farstep up" if urlsplit(url).hostname in LOOPBACK else ""
