"""The proxy's server: uvicorn on a thread of its own, on the loopback interface, at a port that the system chooses."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from farstep.errors import MissingExtraError
from farstep.rollout.collecting import Collector
from farstep.rollout.settings import RolloutSettings
from farstep.sampling import OpenAiEndpoint
from farstep.trainers.errors import RolloutError

if TYPE_CHECKING:
    import uvicorn

_START_S = 30.0
_STOP_S = 10.0


class Proxy:
    """Started by `start`, ended by `stop`. `api_key` is drawn anew for each.

    Args:
        endpoint: the sampler, as of now.
    """

    def __init__(
        self, settings: RolloutSettings, *, endpoint: Callable[[], OpenAiEndpoint], policy_version: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._policy_version = policy_version
        self._collectors: dict[str, Collector] = {}
        self.api_key = secrets.token_urlsafe(32)
        self.problems: Counter[str] = Counter()
        self._server: uvicorn.Server | None = None
        self._error: BaseException | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def base_url(self, name: str | None = None) -> str:
        """Of the sample of that name, or of none."""
        return f"{self.url}/v1" if name is None else f"{self.url}/s/{name}/v1"

    def open(self, collector: Collector) -> str:
        """The address below which that sample's turns are collected from now on."""
        self._collectors[collector.name] = collector
        return self.base_url(collector.name)

    def close(self, collector: Collector) -> None:
        collector.is_closed = True
        self._collectors.pop(collector.name, None)

    def start(self) -> None:
        """Raises MissingExtraError where the server's libraries are not installed."""
        try:
            import_module("uvicorn")
            import_module("starlette")
        except ImportError as error:
            raise MissingExtraError(
                "the proxy needs starlette and uvicorn", hint="pip install 'farstep[trainers]'"
            ) from error
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        self._port = sock.getsockname()[1]
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(sock, started), name="rollout-proxy", daemon=True)
        self._thread.start()
        if not started.wait(_START_S) or self._error is not None:
            raise RolloutError("the proxy did not start") from self._error

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(_STOP_S)

    def _serve(self, sock: socket.socket, started: threading.Event) -> None:
        try:
            asyncio.run(self._run(sock, started))
        except BaseException as error:
            self._error = error
        finally:
            started.set()
            sock.close()

    async def _run(self, sock: socket.socket, started: threading.Event) -> None:
        import uvicorn

        from farstep.rollout.proxy.app import ProxyRoutes
        from farstep.rollout.proxy.upstream import Upstream

        settings = self._settings
        upstream = Upstream(max_retries=settings.retries.model_request)
        routes = ProxyRoutes(
            upstream,
            key=self.api_key,
            find=self._collectors.get,
            count=self._count,
            params=settings.sampling_params,
            in_flight=settings.in_flight,
            max_turns=settings.max_turns,
            endpoint=self._endpoint,
            policy_version=self._policy_version,
        )
        config = uvicorn.Config(
            routes.app(), log_level="critical", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        while not self._server.started and not serving.done():  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        started.set()
        try:
            await serving
        finally:
            await upstream.aclose()

    def _count(self, reason: str) -> None:
        self.problems[reason] += 1
