"""Answers that are sent as they come into being, and work that ends when nobody is left to read its answer.

What goes wrong before the first piece is an ordinary error with its status; what goes wrong later has a form of the
stream's own. Now and then a stream that has nothing to say sends a heartbeat, so that both ends know of each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from google.protobuf import json_format
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from farstep_proto import paths
from farstep_proto.errors import Draining, error_from_exception
from farstep_proto.framing import HEARTBEAT, framed
from farstep_proto.v1 import sampling_pb2 as pb
from farstep_sampler.events import Events
from farstep_sampler.submissions import Submissions

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
SSE_HEARTBEAT = b": still there\n\n"

T = TypeVar("T")
Pieces = AsyncGenerator[bytes, None]


class Stream(Response):
    """Sends pieces as they come, and closes their generator when all is said or the client goes away.

    Args:
        on_error: the last piece, where the generator raises.
    """

    def __init__(
        self,
        pieces: Pieces,
        *,
        media_type: str,
        heartbeat: bytes,
        on_error: Callable[[Exception], bytes],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        self._pieces = pieces
        self._heartbeat = heartbeat
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watch = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sending, watch), return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and (error := sending.exception()) is not None:
                log.debug("a stream was not read to its end: %s", error)
        finally:
            await _ended(sending, watch)
            await self._pieces.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._with_heartbeats():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _with_heartbeats(self) -> Pieces:
        while True:
            coming = asyncio.ensure_future(anext(self._pieces, None))
            try:
                while not (await asyncio.wait((coming,), timeout=HEARTBEAT_S))[0]:
                    yield self._heartbeat
                piece = coming.result()
            except Exception as error:  # told to the client, in the stream's own form
                yield self._on_error(error)
                return
            finally:
                await _ended(coming)
            if piece is None:
                return
            yield piece


async def counted(submissions: Submissions, events: Events) -> Events:
    """The events, counted as one sample in flight; raises TooManyRequests where nothing more is taken."""
    with submissions.watched():
        async with contextlib.aclosing(events):
            async for event in events:
                yield event


async def event_stream(request: Request, events: Events) -> Stream:
    """The answer to a request for events, begun: its first event and the one after it are there.

    Raises:
        ApiError: nothing comes, and why.
    """
    is_framed = paths.PROTOBUF in request.headers.get("accept", "")
    encode = framed if is_framed else _server_sent
    first, all_events = await first_of(request, events)

    async def pieces() -> Pieces:
        async with contextlib.aclosing(all_events):
            async for event in all_events:
                yield encode(event)

    return Stream(
        pieces(),
        media_type=paths.PROTOBUF_STREAM if is_framed else paths.EVENT_STREAM,
        heartbeat=HEARTBEAT if is_framed else SSE_HEARTBEAT,
        on_error=lambda error: encode(pb.SampleEvent(error=error_from_exception(error))),
        headers={paths.EXACT_POLICY_VERSION: str(first.begin.policy_version)},
    )


async def first_of(request: Request, items: AsyncGenerator[T, None]) -> tuple[T, AsyncGenerator[T, None]]:
    """The first item, as soon as it is known that another follows, and all of them, to be closed by who takes them.

    Items that are long in coming after the first are taken to be alright.

    Raises:
        ApiError: nothing comes, and why; Draining where the client goes away.
    """
    first = await while_connected(request, anext(items))
    coming = asyncio.ensure_future(anext(items))
    watch = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((coming, watch), timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        if watch.done():
            raise Draining("the client went away")
        if coming.done():
            coming.result()
    except BaseException:
        await _ended(coming)
        await items.aclose()
        raise
    finally:
        await _ended(watch)
    return first, _all(first, coming, items)


async def _all(first: T, coming: asyncio.Future[T], items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    try:
        yield first
        yield await coming
        async for item in items:
            yield item
    finally:
        await _ended(coming)
        await items.aclose()


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Draining("the client went away")  # nobody reads this
        return task.result()
    finally:
        await _ended(task, watch)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _server_sent(event: pb.SampleEvent) -> bytes:
    text = json_format.MessageToJson(event, preserving_proto_field_name=True, indent=None)
    return f"event: {event.WhichOneof('event')}\ndata: {text}\n\n".encode()
