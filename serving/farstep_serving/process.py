"""A server process: it binds, says where it listens, serves, and ends with whoever started it.

The announcement is one JSON line on standard output, `{"event": "ready", "url": …}`; everything else a
server says goes to standard error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from farstep_serving.connections import BoundedHttp, ConnectionLimits, bounded_by

EXIT_GRACE_S = 10.0
_TICKS_PER_CHECK = 10  # uvicorn ticks ten times a second


def setup_logging(level: str = "INFO") -> None:
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        SystemExit: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is named
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise SystemExit(f"cannot listen on {host}:{port}: {error.strerror}") from error
    sock.listen(2048)
    return sock


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(**facts: str | int) -> None:
    sys.stdout.write(json.dumps({"event": "ready", **facts}) + "\n")
    sys.stdout.flush()


async def serve(
    app: ASGIApp,
    sock: socket.socket,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    drain: Callable[[], Awaitable[None]] | None = None,
    limits: ConnectionLimits | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; `on_stop` is called at once then, so that parked requests can go.

    With `drain`, everything is still served until that is done; a second signal does not wait for it.
    """
    config = uvicorn.Config(
        app,
        http=bounded_by(limits or ConnectionLimits.of_process()),
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(EXIT_GRACE_S),
        backlog=2048,
    )
    await _Server(config, on_ready, on_stop, drain).serve(sockets=[sock])


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        drain: Callable[[], Awaitable[None]] | None,
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._loop = asyncio.get_running_loop()
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_CHECK == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedHttp):
                    connection.check(now)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.started and self._drain is not None and self._draining is None:
            self._loop.call_soon_threadsafe(self._begin_to_drain, sig)
            return
        if self.started:
            self._loop.call_soon_threadsafe(self._on_stop)
        super().handle_exit(sig, frame)

    def _begin_to_drain(self, sig: int) -> None:
        async def drain() -> None:
            assert self._drain is not None
            try:
                await self._drain()
            finally:
                self.handle_exit(sig, None)

        if self._draining is None:
            self._draining = asyncio.create_task(drain(), name="drain")


def exit_with_parent() -> None:
    """Ends this process when standard input closes, as it does when the parent dies, however it died."""

    def watch() -> None:
        # Not through sys.stdin: its lock, held by this thread, would abort the interpreter at its end.
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(EXIT_GRACE_S + 5)
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
