"""The fleet: which stacks there are, and how to come by one that is ready.

One shared stack per base model, started when first asked for; stacks of somebody's own on demand. It knows processes
and base models, nothing of sessions or runs.

Invariant: a stack, once it was ready, keeps its id and its addresses until it is removed, over every death, restart of
the control plane and idle time. What is handed out was alive and answering when it was.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace

from farstep_infra.control.placements import Placements
from farstep_infra.control.served_models import ServedModels
from farstep_infra.control.servers import Server, Site
from farstep_infra.control.stacks import Stack, StackSpec
from farstep_infra.launchers.base import ProcessLog
from farstep_proto.errors import NotFound


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    name: str
    role: str
    base_model: str
    url: str
    pid: int
    state: str
    started_at: float  # seconds since the epoch
    num_restarts: int
    log_path: str


class Fleet:
    """All stacks of this control plane. A base model is asked for by any of its names."""

    def __init__(self, site: Site, placements: Placements, served: ServedModels) -> None:
        self.served = served
        self._site = site
        self._placements = placements
        self._stacks: dict[str, Stack] = {}
        self._entering = asyncio.Lock()  # of a stack that is not there yet

    @property
    def device(self) -> str:
        """Where its servers compute, as it was asked for."""
        return self._site.commands.device

    async def restore(self) -> None:
        """Knows again what an earlier control plane knew; nothing runs yet."""
        for spec, places in await self._placements.load():
            self._stacks[spec.stack_id] = Stack(spec, self._site, self._placements, places)

    async def shared(self, base_model: str) -> Stack:
        """The stack of all runs on a base model, remembered from now on; it may have to come up."""
        async with self._entering:
            known = self.find_shared(base_model)
            return known or await self._enter(StackSpec(_new_id(), self.served.resolve(base_model)))

    async def default(self, base_model: str, *, num_trainers: int) -> Stack:
        """The shared stack of a base model, with so many processes that train together from its next start on."""
        stack = await self.shared(base_model)
        if stack.spec.num_trainers != num_trainers:
            stack.spec = replace(stack.spec, num_trainers=num_trainers)
            await self._placements.change_stack(stack.spec)
        return stack

    def find_shared(self, base_model: str) -> Stack | None:
        model = self.served.resolve(base_model)
        for stack in self._stacks.values():
            if stack.spec.is_shared and stack.spec.base_model == model:
                return stack
        return None

    async def own(self, base_model: str, *, num_trainers: int, model_path: str = "") -> Stack:
        """A new stack of nobody else; without a trainer it has samplers only."""
        model = self.served.resolve(base_model)
        async with self._entering:
            return await self._enter(
                StackSpec(_new_id(), model, model_path, num_trainers=num_trainers, is_shared=False)
            )

    def find(self, stack_id: str) -> Stack | None:
        return self._stacks.get(stack_id)

    @property
    def stacks(self) -> Sequence[Stack]:
        return list(self._stacks.values())

    async def remove(self, stack: Stack) -> None:
        """Stops and forgets it, with its journal."""
        stack_id = stack.spec.stack_id
        await stack.go_down()
        self._stacks.pop(stack_id, None)
        await self._placements.remove_stack(stack_id)
        if stack.spec.num_trainers:
            await asyncio.to_thread(shutil.rmtree, self._site.commands.journal(stack_id), ignore_errors=True)

    def workers(self) -> list[str]:
        """Addresses of the trainers and samplers that run."""
        return [url for stack in self.stacks for url in stack.workers()]

    def processes(self) -> list[ProcessFacts]:
        return [
            _facts(stack, server)
            for stack in self._stacks.values()
            for server in (*stack.servers, *stack.remains)
            if server.process.condition != "stopped"
        ]

    def log(self, name: str) -> ProcessLog:
        """Raises NotFound where no process has that name."""
        for stack in self._stacks.values():
            for server in (*stack.servers, *stack.remains):
                if server.place.name == name:
                    return server.process.log
        raise NotFound(f"no process {name!r}", field="name", hint="farstep status lists them")

    async def close(self) -> None:
        await asyncio.gather(*(stack.go_down() for stack in self._stacks.values()))

    async def _enter(self, spec: StackSpec) -> Stack:
        await self._placements.add_stack(spec)
        stack = self._stacks[spec.stack_id] = Stack(spec, self._site, self._placements)
        return stack


def _facts(stack: Stack, server: Server) -> ProcessFacts:
    process = server.process
    return ProcessFacts(
        name=process.name,
        role=server.role,
        base_model=stack.spec.base_model,
        url=server.url,
        pid=process.pid,
        state=process.condition,
        started_at=process.started_at,
        num_restarts=process.num_restarts,
        log_path=process.log.location,
    )


def _new_id() -> str:
    return f"stack-{secrets.token_hex(4)}"
