"""Whether the fleet's servers answer: one that has not for a long time is killed, and its supervisor starts it again.

A server that computes answers all the same, so patience costs nothing but time in the rare case that one hangs; a
machine that is busy, or slept, must not look like servers that are dead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from http import HTTPStatus

import httpx

from farstep_infra.control.fleet import Fleet
from farstep_infra.control.servers import Server
from farstep_proto import paths

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
_ALONE = 3.0  # times longer where nobody answers: then it is more likely the machine
_EVERY_S = 5.0
_ANSWER_S = 5.0
_WELL = frozenset({HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE})  # it drains, or has nobody to serve yet


@dataclass(frozen=True, slots=True)
class Silence:
    """For how long one life of a server has given no good answer, as far as we were there to ask."""

    pid: int
    seconds: float
    last: str  # what came instead

    def is_too_long(self, *, others_answer: bool, patience_s: float) -> bool:
        return self.seconds >= (patience_s if others_answer else _ALONE * patience_s)


class HealthWatch:
    """Args: `patience_s`: for how long a server may be silent while others answer."""

    def __init__(
        self,
        fleet: Fleet,
        client: httpx.AsyncClient,
        *,
        patience_s: float = PATIENCE_S,
        every_s: float = _EVERY_S,
        answer_s: float = _ANSWER_S,
    ) -> None:
        self._fleet = fleet
        self._client = client
        self._patience_s = patience_s
        self._every_s = every_s
        self._answer_s = answer_s
        self._silences: dict[str, Silence] = {}

    async def run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._every_s)
            now = time.monotonic()
            # A control plane that was stopped itself has not listened meanwhile.
            listened_s, last = min(now - last, self._every_s + 2 * self._answer_s), now
            await self._look(listened_s)

    async def _look(self, listened_s: float) -> None:
        servers = [server for stack in self._fleet.stacks for server in stack.servers if server.process.is_running]
        asked = [(server, server.process.pid) for server in servers]
        complaints = await asyncio.gather(*(self._complaint(server) for server in servers))
        others_answer = not all(complaints)
        silences = {}
        for (server, pid), complaint in zip(asked, complaints, strict=True):
            if not complaint:
                continue
            name = server.place.name
            before = self._silences.get(name)
            heard_s = before.seconds if before is not None and before.pid == pid else 0.0
            silence = silences[name] = Silence(pid, heard_s + listened_s, complaint)
            if silence.is_too_long(others_answer=others_answer, patience_s=self._patience_s):
                log.error("%s is killed: %s for %.0f s", name, complaint, silence.seconds)
                await server.process.kill(f"{complaint} for {silence.seconds:.0f} s")
        self._silences = silences

    async def _complaint(self, server: Server) -> str:
        """What is wrong with it; empty where nothing is."""
        try:
            response = await self._client.get(server.url + paths.HEALTH, timeout=self._answer_s)
        except httpx.HTTPError as error:
            return f"it gave no answer ({type(error).__name__})"
        return "" if response.status_code in _WELL else f"it said that it is not well ({response.status_code})"
