"""Messages to and from one server over HTTP: the only importer of httpx.

Lives on the background loop. It knows media types, keys, retries and the error table, and nothing of what
the messages mean. Requests that a server parks have a lane of their own, so that they never hold up short
ones; together they stay within eight connections. Streams hold one each, beside those.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import logging
import platform
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
from google.protobuf.message import Message

from farstep import _retry, _whereabouts
from farstep._address import Origin
from farstep._answers import RETRY_STATUSES, error_message, events_of, is_foreign, parse, refusal, retry_after_of
from farstep._settings import ApiKey
from farstep._whereabouts import Whereabouts
from farstep.errors import FarstepError, ServerError, TransportError
from farstep_proto import paths
from farstep_proto.framing import Unframer
from farstep_proto.v1 import sampling_pb2

log = logging.getLogger("farstep")

M = TypeVar("M", bound=Message)

ANSWER_S = 60.0
PARKED_ANSWER_S = 20.0  # beyond the time for which the server was asked to park it
CONNECT_S = 10.0
KEEPALIVE_S = 60.0  # less than the servers' own, so that ours ends first
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
    """Args:
    origin: who says where the server is when it does not answer; None: it is at `url` or nowhere.
    """

    def __init__(self, url: str, key: ApiKey, *, origin: Origin | None = None) -> None:
        self.url = url
        self._key = key
        self._lanes = {lane: asyncio.Semaphore(lane.value) for lane in Lane}
        self._under_way: set[asyncio.Timeout] = set()
        self._renewed = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._lost: FarstepError | None = None
        self._whereabouts: Whereabouts | None = None
        if origin is not None:
            self._whereabouts = Whereabouts(origin, key, on_found=self._move, on_lost=self._lose)
        self._connect()

    def _connect(self) -> None:
        num_connections = sum(lane.value for lane in Lane)
        self._client = _new_client(self.url, self._key, max_connections=num_connections, max_idle=num_connections)
        self._streams = _new_client(self.url, self._key, max_connections=None, max_idle=8)

    def renew(self) -> None:
        """Goes on with new connections; what is under way on the old ones and can be repeated is, at once."""
        if self._client.is_closed:
            return
        old = self._client, self._streams
        self._connect()
        task = asyncio.get_running_loop().create_task(_close_later(*old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        for limit in self._under_way:
            if limit.when() is None:
                limit.reschedule(0.0)
        self._renewed.set()
        self._renewed = asyncio.Event()

    async def call(self, request: Request, reply: type[M], *, budget_s: float | None = None) -> M:
        """The server's answer; faults are retried within the budget, with the same request each time.

        Raises:
            FarstepError: the server refused, or the budget is spent.
        """
        retry = _retry.REQUEST_RETRY.within(budget_s)
        with _retry.Backoff(retry, what=f"{request.method} {self.url}{request.path}") as backoff:
            while True:
                try:
                    answer = await self._attempt(request, reply)
                except _Fault as fault:
                    error, retry_after_s = fault.error, fault.retry_after_s
                else:
                    backoff.succeed()
                    return answer
                await self.rest(backoff, error, at_least_s=retry_after_s)

    async def attempt(self, request: Request, reply: type[M]) -> M:
        """A single attempt."""
        try:
            return await self._attempt(request, reply)
        except _Fault as fault:
            error = fault.error
        raise error

    async def rest(self, backoff: _retry.Backoff, error: FarstepError, *, at_least_s: float = 0.0) -> None:
        """Between two attempts: as long as it takes, or until there is a new reason to hope.

        Raises:
            FarstepError: `error`, when the budget is spent, or that the server is gone for good.
        """
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        delay_s = backoff.delay_s(error, at_least_s=at_least_s)
        if self._whereabouts is not None and backoff.lasted_s >= _whereabouts.ASK_AFTER_S:
            self._whereabouts.ask()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._renewed.wait()

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
                    raise refusal(response, error_message(response), self.url)
                if paths.PROTOBUF_STREAM not in response.headers.get("content-type", ""):
                    raise ServerError(f"{self.url} answered without a stream", hint="is it a Farstep server?")
                async for chunk in response.aiter_raw():
                    for event in events_of(unframer, chunk, self.url):
                        yield event
            return
        except (httpx.TransportError, httpx.StreamError) as error:
            reason = _reason(error)
        # Raised out here, because httpx's error holds the request and with it the key.
        raise TransportError(f"the stream from {self.url} broke off ({reason})", hint=_hint_for(self.url))

    async def ping(self, path: str, *, budget_s: float) -> None:
        """Returns when `path` answers with success, whatever it says; any failure is retried within the budget."""
        retry = _retry.REQUEST_RETRY.within(budget_s)
        with _retry.Backoff(retry, what=f"waiting for {self.url}") as backoff:
            while True:
                try:
                    response = await self._exchange(Request("GET", path, lane=Lane.PARKED))
                except _Fault as fault:
                    error = fault.error
                else:
                    if response.is_success:
                        return
                    error = refusal(response, error_message(response), self.url)
                await self.rest(backoff, error)

    async def aclose(self) -> None:
        if self._whereabouts is not None:
            await self._whereabouts.aclose()
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._client.aclose()
        await self._streams.aclose()

    def _move(self, url: str) -> None:
        if url != self.url:
            log.warning("%s does not answer: going on at %s", self.url, url)
            self.url = url
            self.renew()

    def _lose(self, error: FarstepError) -> None:
        self._lost = error
        self._renewed.set()
        self._renewed = asyncio.Event()

    async def _attempt(self, request: Request, reply: type[M]) -> M:
        async with self._lanes[request.lane]:
            response = await self._exchange(request)
        if response.is_success:
            try:
                answer = parse(response, reply, self.url)
            except ServerError as error:
                fault = error
            else:
                self._lost = None
                return answer
            if request.repeatable:
                raise _Fault(fault)
            raise fault
        message = error_message(response)
        is_certain = message is not None and response.status_code in (408, 429, 503)  # it did not take the request
        is_passing = response.status_code in RETRY_STATUSES or is_foreign(response, message)
        refused = refusal(response, message, self.url)
        if is_passing and (request.repeatable or is_certain):
            raise _Fault(refused, retry_after_s=retry_after_of(response, message))
        raise refused

    async def _exchange(self, request: Request) -> httpx.Response:
        """Raises _Fault where the request may go again, TransportError where it must not."""
        patience_s = ANSWER_S if request.lane is Lane.SHORT else request.wait_s + PARKED_ANSWER_S
        try:
            async with asyncio.timeout(None) as limit:
                if request.repeatable:
                    self._under_way.add(limit)
                try:
                    return await self._client.request(
                        request.method,
                        request.path,
                        content=request.body or None,
                        params=request.params or None,
                        headers=request.headers,
                        timeout=httpx.Timeout(patience_s, connect=CONNECT_S, pool=None),
                    )
                finally:
                    self._under_way.discard(limit)
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = _reason(error)
            was_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        except TimeoutError:
            reason, was_sent = "its connections were given up", True
        # Raised out here, because httpx's error holds the request and with it the key.
        fault = TransportError(f"{self.url} does not answer ({reason})", hint=_hint_for(self.url))
        if was_sent and not request.repeatable:
            raise fault
        raise _Fault(fault)


async def _close_later(*clients: httpx.AsyncClient) -> None:
    """When what must not be repeated has had its time on them."""
    try:
        await asyncio.sleep(ANSWER_S)
    finally:
        for client in clients:
            await client.aclose()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


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


def _hint_for(url: str) -> str:
    return "is it running? start one with: farstep up" if urlsplit(url).hostname in LOOPBACK else ""
