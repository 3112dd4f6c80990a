"""A server of the fleet: one supervised process with one address, chosen once and kept over all its lives.

It knows how a server is greeted and asked over HTTP, nothing of which others it belongs to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import httpx

from farstep_infra.control.commands import Commands, Role
from farstep_infra.launchers.base import Launcher, LaunchFailed, ProcessSpec, Resources
from farstep_infra.launchers.restarts import RestartPolicy
from farstep_infra.launchers.supervision import READY_DEADLINE_S, Supervised
from farstep_proto import paths
from farstep_proto.v1 import training_pb2

_ANSWER_S = 10.0
_ASK_AGAIN_S = 0.05


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is, as long as anybody knows of it. `feed_port` is 0 but for a trainer."""

    name: str
    role: Role
    port: int
    feed_port: int = 0


async def _nobody(urls: Sequence[str]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Site:
    """Where servers are started, and with what: the same for the whole fleet.

    Args:
        environment: of every server, complete; holds the key.
        client: carries the key.
        before_stop: told of the trainers and samplers, by address, that are stopped as soon as it returns.
    """

    launcher: Launcher
    commands: Commands
    environment: Mapping[str, str]
    client: httpx.AsyncClient
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    before_stop: Callable[[Sequence[str]], Awaitable[None]] = _nobody

    def url(self, port: int) -> str:
        return f"http://{self.address(port)}"

    def address(self, port: int) -> str:
        host = self.commands.host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Server:
    """Args:
    argv: its command line, asked for at every start: a router's names the replicas that there are then.
    was_ready: whether it has been ready at this place before.
    """

    def __init__(
        self, place: Place, site: Site, argv: Callable[[], tuple[str, ...]], *, resources: Resources, was_ready: bool
    ) -> None:
        self.place = place
        self.url = site.url(place.port)
        self.info = training_pb2.ServerInfo()  # as the last life told it
        self._site = site
        self._argv = argv
        self._resources = resources
        self.process = Supervised(
            site.launcher, place.name, self._spec, greet=self._greet, was_ready=was_ready, policy=site.policy
        )

    @property
    def role(self) -> Role:
        return self.place.role

    async def ask(self) -> training_pb2.ServerInfo:
        """What it tells of itself now; raises httpx.HTTPError where it does not answer."""
        response = await self._site.client.get(self.url + paths.INFO, timeout=_ANSWER_S)
        response.raise_for_status()
        return training_pb2.ServerInfo.FromString(response.content)

    async def call(self, method: str, path: str, *, body: bytes = b"", params: Mapping[str, str] | None = None) -> None:
        """One request; raises httpx.HTTPError where it is not answered, or refused."""
        headers = {"Content-Type": paths.PROTOBUF}
        response = await self._site.client.request(
            method, self.url + path, content=body, headers=headers, params=dict(params or {}), timeout=_ANSWER_S
        )
        response.raise_for_status()

    def _spec(self) -> ProcessSpec:
        ports = {"http": self.place.port}
        if self.place.feed_port:
            ports["feed"] = self.place.feed_port
        return ProcessSpec(
            self.place.name, self.role, self._argv(), self._site.environment, ports=ports, resources=self._resources
        )

    async def _greet(self, announcement: Mapping[str, str]) -> None:
        """Waits as long as it says that it is busy: a router is, until it has met one of its replicas."""
        deadline, pause_s = time.monotonic() + READY_DEADLINE_S, _ASK_AGAIN_S
        try:
            while True:
                try:
                    self.info = await self.ask()
                    return
                except httpx.HTTPStatusError as error:
                    is_busy = error.response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
                    if not is_busy or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(pause_s)
                pause_s = min(1.0, 1.5 * pause_s)
        except httpx.HTTPError as error:
            raise LaunchFailed(f"{self.place.name} at {self.url} does not tell what it is: {error!r}") from error
