"""A real HTTP proxy between a client and one server, which does to single exchanges what networks do.

It reads whole requests, so it knows what "delivered" means, and passes answers on as they come, so that parked
polls and streams go through it. It stands before one server, or, as a client's `http_proxy`, before all of them.
Besides the faults of single exchanges (`network_faults`) it can refuse connections, swallow everything in silence,
and cut all that is open, as a laptop that changes its network does.
It refuses to be fast, and to speak anything but HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import h11

from tests.support.network_faults import Exchange, Fault, FaultPlan

T = TypeVar("T")

_CHUNK_BYTES = 64 << 10


class FaultyProxy:
    """Every method may be called from any thread.

    Args:
        upstream: the server's address; may be changed while it runs. Requests that name their server go there.
        delay_s: of DELAY, and before a LATE_DUPLICATE.
        hole_s: how long BLACK_HOLE says nothing before it ends the connection.
    """

    def __init__(
        self, upstream: str, plan: FaultPlan | None = None, *, delay_s: float = 0.2, hole_s: float = 1.0
    ) -> None:
        self.upstream = upstream
        self.plan = plan or FaultPlan()
        self.exchanges: list[Exchange] = []
        self._delay_s = delay_s
        self._hole_s = hole_s
        self._links: set[_Link] = set()
        self._stray: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._is_silent = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)

    def start(self) -> FaultyProxy:
        self._thread.start()
        self._port = 0
        self._call(self._listen())
        return self

    def stop(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def refuse(self) -> None:
        """Connections are refused, and those that are open are cut, until `accept`."""
        self._call(self._refuse())

    def accept(self) -> None:
        self._call(self._listen())

    def cut_all(self) -> None:
        """Resets every open connection; new ones are welcome."""
        self._call(self._cut_all())

    def silence(self, is_silent: bool = True) -> None:
        """Takes requests, and answers nothing, to anybody, until told otherwise; what is under way is swallowed."""
        self._is_silent = is_silent

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=512)
            self._port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut_all()

    async def _cut_all(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _end(self) -> None:
        await self._refuse()
        await asyncio.sleep(0)  # who has just connected is served by a task that has begun
        for task in [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(reader, writer, h11.SERVER)
        self._links.add(link)
        try:
            while await self._exchange(link):
                link.conn.start_next_cycle()
        except (OSError, h11.ProtocolError, _Gone):
            pass
        finally:
            self._links.discard(link)
            link.close()

    async def _exchange(self, link: _Link) -> bool:
        """One request; whether the connection is good for another."""
        request = await link.next_event()
        if not isinstance(request, h11.Request):
            return False
        body = await link.read_body()
        path = request.target.decode()
        fault = self.plan.draw(request.method.decode(), path)
        self.exchanges.append(Exchange(request.method.decode(), path, fault))
        if self._is_silent or fault is Fault.BLACK_HOLE:
            await self._swallow()
            return False
        if fault is Fault.RESET:
            link.reset()
            return False
        if fault is Fault.DELAY:
            await asyncio.sleep(self._delay_s)
        if fault is Fault.DUPLICATE:
            await self._deliver(request, body)
        if fault is Fault.LATE_DUPLICATE:
            self._deliver_later(request, body)
        if fault is Fault.CUT_REQUEST:
            await self._deliver(request, body[: len(body) // 2], is_cut=True)
            link.reset()
            return False
        return await self._pass_on(link, request, body, fault)

    async def _pass_on(self, link: _Link, request: h11.Request, body: bytes, fault: Fault) -> bool:
        async with self._sent(request, body) as upstream:
            watching = asyncio.create_task(link.until_gone())
            passing = asyncio.create_task(self._answer(link, upstream, fault))
            try:
                await asyncio.wait({watching, passing}, return_when=asyncio.FIRST_COMPLETED)
                return passing.done() and passing.result()
            finally:
                for task in (watching, passing):
                    task.cancel()
                await asyncio.gather(watching, passing, return_exceptions=True)

    async def _answer(self, link: _Link, upstream: _Link, fault: Fault) -> bool:
        response = await upstream.next_event()
        assert isinstance(response, h11.Response)
        if fault is Fault.DROP_RESPONSE:
            await upstream.read_body()
            link.reset()
            return False
        if fault is Fault.CUT_RESPONSE:
            await self._cut(link, upstream, response)
            return False
        headers = [(name, value) for name, value in response.headers if name not in (b"connection", b"keep-alive")]
        event: Any = h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)
        while not isinstance(event, h11.EndOfMessage):
            if self._is_silent:
                await self._swallow()
                return False
            await link.write(event)
            event = await upstream.next_event()
        await link.write(event)
        return bool(link.conn.our_state is h11.DONE and link.conn.their_state is h11.DONE)

    async def _cut(self, link: _Link, upstream: _Link, response: h11.Response) -> None:
        body = await upstream.read_body()
        content_type = [(name, value) for name, value in response.headers if name == b"content-type"]
        headers = [*content_type, (b"content-length", str(len(body) + 1).encode())]
        await link.write(h11.Response(status_code=response.status_code, headers=headers))
        await link.write(h11.Data(data=body[: len(body) // 2]))

    async def _swallow(self) -> None:
        await asyncio.sleep(self._hole_s)
        while self._is_silent:  # noqa: ASYNC110 - set from other threads
            await asyncio.sleep(0.05)

    async def _deliver(self, request: h11.Request, body: bytes, *, is_cut: bool = False) -> None:
        """Has the server see it, for nobody to hear the answer."""
        async with self._sent(request, body, is_whole=not is_cut) as upstream:
            if not is_cut:
                await upstream.next_event()
                await upstream.read_body()

    def _deliver_later(self, request: h11.Request, body: bytes) -> None:
        async def deliver() -> None:
            await asyncio.sleep(self._delay_s)
            with contextlib.suppress(OSError, h11.ProtocolError, _Gone):
                await self._deliver(request, body)

        task = asyncio.create_task(deliver())
        self._stray.add(task)
        task.add_done_callback(self._stray.discard)

    @contextlib.asynccontextmanager
    async def _sent(self, request: h11.Request, body: bytes, *, is_whole: bool = True) -> AsyncIterator[_Link]:
        """A connection of its own to the server, with the request on it."""
        target = urlsplit(request.target.decode())
        parts = target if target.netloc else urlsplit(self.upstream)
        upstream = _Link(*await asyncio.open_connection(parts.hostname, parts.port), h11.CLIENT)
        hop = (b"connection", b"keep-alive", b"host")
        headers = [(name, value) for name, value in request.headers if name not in hop]
        headers += [(b"Host", parts.netloc.encode()), (b"Connection", b"close")]
        try:
            path = target._replace(scheme="", netloc="").geturl()
            await upstream.write(h11.Request(method=request.method, target=path, headers=headers))
            if body:
                await upstream.write(h11.Data(data=body))
            if is_whole:
                await upstream.write(h11.EndOfMessage())
            yield upstream
        finally:
            upstream.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)


class _Gone(Exception):
    """The other side ended the connection."""


class _Link:
    """One TCP connection that speaks HTTP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, role: type[h11.CLIENT]) -> None:
        self.conn = h11.Connection(role)
        self._reader = reader
        self._writer = writer

    async def next_event(self) -> Any:
        """Raises _Gone where none will come."""
        while (event := self.conn.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(_CHUNK_BYTES)
            self.conn.receive_data(data)
        if isinstance(event, h11.ConnectionClosed):
            raise _Gone
        return event

    async def read_body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self.next_event(), h11.Data):
            body += event.data
        return bytes(body)

    async def write(self, event: Any) -> None:
        data = self.conn.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()

    async def until_gone(self) -> None:
        """Returns when the other side has ended the connection; what it sends meanwhile is kept."""
        while data := await self._reader.read(_CHUNK_BYTES):
            self.conn.receive_data(data)

    def reset(self) -> None:
        """Ends it by a TCP reset, with whatever was written and not sent."""
        sock = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def faulty_proxy(upstream: str, plan: FaultPlan | None = None, **options: float) -> Iterator[FaultyProxy]:
    """One that runs as long as the block."""
    proxy = FaultyProxy(upstream, plan, **options).start()
    try:
        yield proxy
    finally:
        proxy.stop()
