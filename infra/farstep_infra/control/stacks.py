"""A stack: a trainer with its paired samplers and the router before them, or samplers alone.

It comes up, grows, goes down and comes up again, always at the same addresses. It knows nothing of runs or sessions;
who may need it, and when it is to rest, is for others to say.

Invariant: coming up and going down take the stack's lock, so that none who asked for it finds it going down: it comes
up again for him.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

from farstep_infra.control.commands import Role
from farstep_infra.control.servers import Place, Server, Site
from farstep_infra.launchers.base import Resources
from farstep_proto import paths
from farstep_proto.v1 import sampling_pb2

log = logging.getLogger(__name__)

Condition = Literal["inactive", "starting", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class StackSpec:
    """What a stack is for. `num_trainers`: processes that train together; 0 for samplers alone.

    A shared one takes any run on its base model; another is somebody's own.
    """

    stack_id: str
    base_model: str
    model_path: str = ""
    num_trainers: int = 1
    is_shared: bool = True


class Places(Protocol):
    """Where servers are remembered."""

    async def add(self, stack_id: str, roles: Sequence[Role]) -> list[Place]:
        """New places, remembered before anything is started there."""
        ...

    async def remove(self, names: Sequence[str]) -> None: ...


class Stack:
    """Args:
    places: those that it has had before; its servers have been ready there.
    """

    def __init__(self, spec: StackSpec, site: Site, remembered: Places, places: Sequence[Place] = ()) -> None:
        self.spec = spec
        self.touched_at = time.monotonic()  # when somebody last asked for it
        self.is_pinned = False  # it never rests
        self.lock = asyncio.Lock()
        self._site = site
        self._remembered = remembered
        self.trainer: Server | None = None
        self.replicas: list[Server] = []
        self.router: Server | None = None
        self.remains: list[Server] = []  # new ones that failed, until it comes up again
        for place in places:
            self._add(place, was_ready=True)

    @property
    def servers(self) -> Iterator[Server]:
        if self.trainer is not None:
            yield self.trainer
        if self.router is not None:
            yield self.router
        yield from self.replicas

    @property
    def condition(self) -> Condition:
        """Of the trainer where there is one, else of the sampler."""
        first = self.trainer or self.router or next(iter(self.replicas), None)
        match first.process.condition if first is not None else "stopped":
            case "stopped" | "stopping":
                return "inactive"
            case "running":
                return "ready"
            case "failed":
                return "failed"
            case _:
                return "starting"

    @property
    def is_up(self) -> bool:
        """Whether everything of it runs."""
        return any(self.servers) and all(server.process.is_running for server in self.servers)

    @property
    def is_loaded(self) -> bool:
        """Whether anything of it takes memory."""
        return any(server.process.condition not in ("stopped", "failed") for server in self.servers)

    @property
    def sampler_url(self) -> str:
        """Of the router or the only replica; empty where there is none."""
        return self._front.url if self._front is not None else ""

    @property
    def is_sampling(self) -> bool:
        """Whether what is at `sampler_url` runs."""
        return self._front is not None and self._front.process.is_running

    @property
    def _front(self) -> Server | None:
        return self.router or next(iter(self.replicas), None)

    def troubles(self) -> list[str]:
        """Of each server that ought to run and does not: what is known, for people."""
        conditions = ("restarting", "failed")
        processes = [server.process for server in self.servers]
        return [process.last_words for process in processes if process.condition in conditions]

    def workers(self) -> list[str]:
        """Addresses of the trainer and the samplers that run."""
        return [server.url for server in self.servers if server.role != "router" and server.process.is_running]

    def touch(self) -> None:
        """Somebody has a use for it: it is not to rest for a while."""
        self.touched_at = time.monotonic()

    async def come_up(self, *, num_samplers: int = 0) -> None:
        """Returns when everything runs, with at least `num_samplers` replicas.

        Raises:
            LaunchFailed: a server did not become ready. New ones are stopped and forgotten then, old ones as they are.
        """
        self.touch()
        async with self.lock:
            self.remains = []
            new = await self._grow(num_samplers)
            try:
                for server in self.servers:
                    server.process.start()
                await _all_ready(self.servers)
            except BaseException:
                self.remains = [server for server in new if server.process.condition == "failed"]
                await self._forget(new)
                raise
            if self.router is not None and self.router not in new:
                await self._join(self.router, [server for server in new if server.role == "sampler"])
            self.touch()

    async def go_down(self, *, only_if: Callable[[], Awaitable[bool]] | None = None) -> bool:
        """Stops everything in order; what is remembered of it stays. `only_if` is asked when nobody else can act."""
        async with self.lock:
            if only_if is not None and not await only_if():
                return False
            await self._site.before_stop(self.workers())
            await asyncio.gather(*(server.process.stop() for server in self.servers))
            return True

    async def _grow(self, num_samplers: int) -> list[Server]:
        """Servers that are missing, with places, not started yet."""
        roles: list[Role] = []
        if self.trainer is None and self.spec.num_trainers:
            roles.append("trainer")
        num_replicas = max(num_samplers, len(self.replicas))
        if self.router is None and num_replicas > 1:
            roles.append("router")
        roles += ["sampler"] * (num_replicas - len(self.replicas))
        places = await self._remembered.add(self.spec.stack_id, roles) if roles else []
        return [self._add(place, was_ready=False) for place in places]

    def _add(self, place: Place, *, was_ready: bool) -> Server:
        num_processes = self.spec.num_trainers if place.role == "trainer" else 1
        needs_gpu = place.role != "router" and self._site.commands.device != "cpu"
        resources = Resources(cpus=num_processes, gpus=num_processes if needs_gpu else 0)
        server = Server(place, self._site, lambda: self._argv(place), resources=resources, was_ready=was_ready)
        match place.role:
            case "trainer":
                self.trainer = server
            case "router":
                self.router = server
            case "sampler":
                self.replicas.append(server)
        return server

    def _argv(self, place: Place) -> tuple[str, ...]:
        commands, spec = self._site.commands, self.spec
        match place.role:
            case "router":
                return commands.router(spec.base_model, [server.url for server in self.replicas], port=place.port)
            case "sampler":
                feed = self._site.address(self.trainer.place.feed_port) if self.trainer is not None else ""
                return commands.sampler(spec.base_model, port=place.port, feed=feed, model_path=spec.model_path)
            case "trainer":
                return commands.trainer(
                    spec.base_model,
                    port=place.port,
                    feed_port=place.feed_port,
                    num_processes=spec.num_trainers,
                    name=spec.stack_id,
                )

    async def _forget(self, servers: Sequence[Server]) -> None:
        """Stops them and gives up their places."""
        await asyncio.gather(*(server.process.stop() for server in servers if server not in self.remains))
        if self.trainer in servers:
            self.trainer = None
        if self.router in servers:
            self.router = None
        self.replicas = [server for server in self.replicas if server not in servers]
        await self._remembered.remove([server.place.name for server in servers])

    async def _join(self, router: Server, replicas: Sequence[Server]) -> None:
        """Has new replicas join a router that goes on serving; one that does not hear of it is started again."""
        try:
            for server in replicas:
                body = sampling_pb2.AddReplicaRequest(url=server.url).SerializeToString()
                await router.call("POST", paths.REPLICAS, body=body)
        except httpx.HTTPError as error:
            await router.process.kill(f"it did not take a new replica: {error!r}")  # its next life knows all of them
            await router.process.ready()


async def _all_ready(servers: Iterable[Server]) -> None:
    """As soon as one fails, that is told; the others go on starting."""
    waits = [asyncio.create_task(server.process.ready()) for server in servers]
    try:
        await asyncio.gather(*waits)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
