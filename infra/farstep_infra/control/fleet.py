"""The fleet: which trainers and samplers there are, and how to come by one that is ready.

One trainer and its paired samplers per base model, started when first asked for and shared by all runs on
that model; fresh samplers on demand. It knows processes and base models, nothing of sessions or runs.

Invariant: what it hands out was alive and answering when it did. What died stays listed as such until
something new takes its place.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal

import httpx

from farstep_infra.home import Home
from farstep_infra.launchers.local import LaunchFailed, LocalProcess
from farstep_proto import paths
from farstep_proto.v1 import sampling_pb2, training_pb2

log = logging.getLogger(__name__)

Role = Literal["trainer", "sampler", "router"]

READY_DEADLINE_S = 3600.0  # a large model may have to be downloaded first
_ANSWER_S = 10.0
_ASK_AGAIN_S = 0.05
_MODULES: dict[Role, str] = {
    "trainer": "farstep_worker",
    "sampler": "farstep_sampler",
    "router": "farstep_sampler.router",
}


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """One ready server process."""

    role: Role
    process: LocalProcess
    url: str
    feed: str  # of a trainer: where its samplers subscribe
    info: training_pb2.ServerInfo

    @property
    def is_running(self) -> bool:
        return self.process.state == "running"


@dataclass(frozen=True, slots=True, eq=False)
class Samplers:
    """Replicas that serve the same, and the router before them where there are several."""

    replicas: tuple[Server, ...]
    router: Server | None

    @property
    def url(self) -> str:
        return (self.router or self.replicas[0]).url

    @property
    def servers(self) -> tuple[Server, ...]:
        return self.replicas if self.router is None else (self.router, *self.replicas)


@dataclass(slots=True, eq=False)
class Stack:
    """A trainer with its paired samplers, which may come later or be replaced."""

    base_model: str
    trainer: Server
    samplers: Samplers | None = None


@dataclass(slots=True)
class _Listed:
    """What `farstep status` shows, from the first moment of a process."""

    role: Role
    base_model: str
    process: LocalProcess
    url: str = ""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    role: str
    base_model: str
    url: str
    pid: int
    state: str
    started_at: float  # seconds since the epoch
    log_path: str


@dataclass(slots=True)
class _Model:
    """One base model's place in the fleet."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    stack: Stack | None = None


class Fleet:
    """All processes that this control plane started.

    Args:
        environment: of every child, complete; holds the key.
        host: the address that the children listen on.
        store: where they and we keep checkpoints: a directory or s3://bucket/prefix.
        device: where the children compute: "auto", "cpu", "cuda", "cuda:0", …
        before_stop: told of the trainers and samplers, by address, that are stopped as soon as it returns.
    """

    def __init__(
        self,
        home: Home,
        *,
        environment: dict[str, str],
        client: httpx.AsyncClient,
        host: str,
        device: str,
        store: str,
        before_stop: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._home = home
        self._host = host
        self._environment = environment
        self._client = client
        self._device = device
        self._store = store
        self._before_stop = before_stop
        self._models: dict[str, _Model] = {}
        self._listed: list[_Listed] = []
        self._numbers = {role: itertools.count(1) for role in _MODULES}

    async def stack(self, base_model: str, *, with_sampler: bool, replicas: int = 1) -> Stack:
        """The ready stack of a base model, with at least `replicas` paired samplers where they are wanted.

        A trainer that has died or does not answer is replaced; runs that are bound to it stay bound to it.

        Raises:
            LaunchFailed: a process did not become ready.
        """
        model = self._models.setdefault(base_model, _Model())
        num_samplers = replicas if with_sampler else 0
        async with model.lock:
            if model.stack is None or not await self._answers(model.stack.trainer):
                model.stack = await self._new_stack(base_model, num_samplers)
            elif num_samplers:
                stack = model.stack
                args = (*self._model_args(base_model), f"--feed={stack.trainer.feed}")
                stack.samplers = await self._samplers(base_model, args, num_samplers, before=stack.samplers)
            return model.stack

    async def fresh_samplers(self, base_model: str, *, model_path: str, replicas: int) -> Samplers:
        """Samplers of nobody else, serving a base model or one checkpoint of it.

        Raises:
            LaunchFailed: a process did not become ready.
        """
        args = (*self._model_args(base_model), *((f"--model-path={model_path}",) if model_path else ()))
        return await self._samplers(base_model, args, replicas, before=None)

    async def stop(self, servers: Sequence[Server]) -> None:
        """Stops them together and forgets them."""
        await self._retire([server.process for server in servers])

    def stacks(self) -> list[Stack]:
        """Those whose trainer runs."""
        stacks = [model.stack for model in self._models.values()]
        return [stack for stack in stacks if stack is not None and stack.trainer.is_running]

    def processes(self) -> list[ProcessFacts]:
        return [
            ProcessFacts(
                role=listed.role,
                base_model=listed.base_model,
                url=listed.url,
                pid=listed.process.pid,
                state=listed.process.state,
                started_at=listed.process.started_at,
                log_path=str(listed.process.log_path),
            )
            for listed in self._listed
        ]

    def workers(self) -> list[str]:
        """Addresses of the trainers and samplers that run."""
        return _workers(self._listed)

    async def close(self) -> None:
        await self._retire([listed.process for listed in self._listed])

    async def _new_stack(self, base_model: str, num_samplers: int) -> Stack:
        """Trainer and samplers start together: the samplers look for the trainer's feed until it is there."""
        args, feed_port = self._model_args(base_model), _free_port(self._host)
        if not num_samplers:
            return Stack(base_model, await self._start("trainer", base_model, args))
        feed_args = (*args, f"--feed={self._host}:{feed_port}")
        samplers = asyncio.create_task(self._samplers(base_model, feed_args, num_samplers, before=None))
        try:
            trainer = await self._start("trainer", base_model, (*args, f"--feed-port={feed_port}"))
        except BaseException:
            samplers.cancel()
            for ended in await asyncio.gather(samplers, return_exceptions=True):
                await self.stop(ended.servers if isinstance(ended, Samplers) else ())
            raise
        try:
            return Stack(base_model, trainer, await samplers)
        except BaseException:
            await self.stop([trainer])
            raise

    async def _samplers(
        self, base_model: str, args: tuple[str, ...], replicas: int, *, before: Samplers | None
    ) -> Samplers:
        """`before`, if it is alive and large enough; else what lives of it with new ones beside it."""
        old = before.replicas if before is not None else ()
        alive = tuple(server for server in old if server.is_running)
        wanted = max(replicas, len(old))
        router = before.router if before is not None else None
        if before is not None and len(alive) == wanted and (router is None or router.is_running):
            return before
        new = await self._start_all("sampler", base_model, args, wanted - len(alive))
        servers = (*alive, *new)
        if len(servers) == 1:
            return Samplers(servers, None)
        if router is not None and router.is_running:
            dead = [server.url for server in old if server not in alive]
            if await self._change(router, joining=[server.url for server in new], leaving=dead):
                return Samplers(servers, router)
        try:
            router = await self._start("router", base_model, tuple(f"--replica={server.url}" for server in servers))
        except BaseException:
            await self.stop(new)
            raise
        return Samplers(servers, router)

    async def _change(self, router: Server, *, joining: Sequence[str], leaving: Sequence[str]) -> bool:
        """Has replicas join and leave a router that goes on serving; False where it does not answer."""
        place = router.url + paths.REPLICAS
        try:
            for url in joining:
                body = sampling_pb2.AddReplicaRequest(url=url).SerializeToString()
                headers = {"Content-Type": paths.PROTOBUF}
                response = await self._client.post(place, content=body, headers=headers, timeout=_ANSWER_S)
                response.raise_for_status()
            for url in leaving:
                await self._client.delete(place, params={"url": url}, timeout=_ANSWER_S)
        except httpx.HTTPError as error:
            log.warning("%s at %s cannot be told of other replicas: %r", router.process.name, router.url, error)
            return False
        return True

    async def _start_all(self, role: Role, base_model: str, args: tuple[str, ...], count: int) -> list[Server]:
        """All or, where one fails, none."""
        starts = [asyncio.ensure_future(self._start(role, base_model, args)) for _ in range(count)]
        try:
            return list(await asyncio.gather(*starts))
        except BaseException:
            for start in starts:
                start.cancel()
            ended = await asyncio.gather(*starts, return_exceptions=True)
            await self.stop([server for server in ended if isinstance(server, Server)])
            raise

    async def _start(self, role: Role, base_model: str, args: tuple[str, ...]) -> Server:
        name = f"{role}-{next(self._numbers[role])}"
        # -P: a file in the user's directory must not shadow a module of the child.
        where = [f"--host={self._host}", "--port=0", "--exit-with-parent"]
        argv = [sys.executable, "-P", "-m", _MODULES[role], *args, *where]
        process = await LocalProcess.start(name, argv, env=self._environment, logs=self._home.logs)
        listed = _Listed(role, base_model, process)
        self._drop_dead(role, base_model)
        self._listed.append(listed)
        try:
            announcement = await process.ready(deadline_s=READY_DEADLINE_S)
            listed.url = announcement["url"]
            info = await self._info(process, listed.url)
        except BaseException:
            await process.stop()
            raise
        return Server(role, process, listed.url, announcement.get("feed", ""), info)

    def _model_args(self, base_model: str) -> tuple[str, ...]:
        return (f"--model={base_model}", f"--store={self._store}", f"--device={self._device}")

    async def _info(self, process: LocalProcess, url: str) -> training_pb2.ServerInfo:
        deadline = time.monotonic() + _ANSWER_S
        try:
            response = await self._client.get(url + paths.INFO, timeout=_ANSWER_S)
            # A router is busy until it has met its replicas.
            while response.status_code == HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
                await asyncio.sleep(_ASK_AGAIN_S)
                response = await self._client.get(url + paths.INFO, timeout=_ANSWER_S)
            response.raise_for_status()
            return training_pb2.ServerInfo.FromString(response.content)
        except httpx.HTTPError as error:
            raise LaunchFailed(f"{process.name} at {url} does not tell what it is: {error!r}") from error

    async def _answers(self, server: Server) -> bool:
        if not server.is_running:
            return False
        try:
            return (await self._client.get(server.url + paths.HEALTH, timeout=_ANSWER_S)).is_success
        except httpx.HTTPError:
            return False

    async def _retire(self, processes: Sequence[LocalProcess]) -> None:
        await self._before_stop(_workers(listed for listed in self._listed if listed.process in processes))
        await asyncio.gather(*(process.stop() for process in processes))
        self._listed = [listed for listed in self._listed if listed.process not in processes]

    def _drop_dead(self, role: Role, base_model: str) -> None:
        """A dead process is shown until one of its kind is started again."""
        self._listed = [
            listed
            for listed in self._listed
            if (listed.role, listed.base_model) != (role, base_model) or listed.process.state not in ("died", "stopped")
        ]


def _workers(processes: Iterable[_Listed]) -> list[str]:
    running = (listed for listed in processes if listed.process.state == "running")
    return [listed.url for listed in running if listed.role != "router" and listed.url]


def _free_port(host: str) -> int:
    """A port that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
