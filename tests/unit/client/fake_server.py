"""What the fake servers of these tests share: real HTTP, and faults of the network.

Built on `farstep_serving`, as the real servers are; only the engine is made up. Faults of the network are
switched on from the test's thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farstep_proto import errors
from farstep_serving.messages import respond_error
from farstep_serving.process import bind, url_of

VOCAB_SIZE = 100
MAX_SEQ_LEN = 64
BASE_MODEL = "farstep/tiny"
KEY = "fsk-secret-of-the-test"


@dataclass
class Fault:
    """What goes wrong with requests to `path`, so many times.

    `error` answers instead of the server; `drop` lets the server act and then cuts the answer off.
    """

    path: str
    times: int = 1
    error: errors.ApiError | None = None
    status: int = 0  # a bare one, as a proxy between answers
    drop: bool = False


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    num_bytes: int


class Server:
    """An ASGI app in front of another that can be exchanged, with faults and a record of requests."""

    def __init__(self, host: Host) -> None:
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.app: ASGIApp = self.make_app()
        self.url = host.serve(self)

    def make_app(self) -> ASGIApp:
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        self.seen.append(
            Seen(
                request.method,
                request.url.path,
                dict(request.query_params),
                dict(request.headers),
                int(request.headers.get("content-length", 0)),
            )
        )
        fault = next((fault for fault in self.faults if fault.times and fault.path in request.url.path), None)
        if fault is None:
            await self.app(scope, receive, send)
            return
        fault.times -= 1
        if fault.drop:
            await self.app(scope, receive, _swallow)
            await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"100")]})
            await send({"type": "http.response.body", "body": b"cut", "more_body": True})
            raise ConnectionError("cut off, as the test wants it")
        response = Response(status_code=fault.status, content="<html>proxy</html>", media_type="text/html")
        if fault.error is not None:
            response = await respond_error(request, fault.error)
        await response(scope, receive, send)

    def count(self, path: str) -> int:
        return sum(path in seen.path for seen in self.seen)


async def _swallow(message: Message) -> None:
    return None


class Host:
    """One thread and one event loop for all servers."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._servers: list[uvicorn.Server] = []
        self._serving: list[Future[None]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    async def _end_rest(self) -> None:
        """Requests whose clients are gone may be parked still."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def serve(self, app: ASGIApp) -> str:
        sock = bind("127.0.0.1", 0)
        config = uvicorn.Config(
            app, log_config=None, log_level="critical", lifespan="off", timeout_graceful_shutdown=0, backlog=2048
        )
        server = uvicorn.Server(config)
        self._servers.append(server)
        self._serving.append(asyncio.run_coroutine_threadsafe(server.serve(sockets=[sock]), self.loop))
        while not server.started:
            time.sleep(0.002)
        return url_of(sock)

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs it on the servers' loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def stop(self) -> None:
        for server in self._servers:
            server.should_exit = True
        for serving in self._serving:
            serving.result(10)
        asyncio.run_coroutine_threadsafe(self._end_rest(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
