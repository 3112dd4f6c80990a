"""Which stacks are loaded: those that nobody uses rest, one that is wanted wakes, and may need another's room.

A stack that rests has lost nothing: its trainer ended in order, with its journal, and comes back at the same addresses.

Invariant: a stack never rests while it has work to do, or while somebody who asked for it is being answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import httpx

from farstep_infra.control.fleet import Fleet
from farstep_infra.control.stacks import Stack
from farstep_infra.launchers.base import LaunchFailed
from farstep_proto.errors import ApiError, TooManyRequests

log = logging.getLogger(__name__)

DEFAULT_IDLE_TIMEOUT_S = 1800.0
LIVE_S = 180.0  # a session is alive for so long after a heartbeat, and clients send one each minute
_LOOK_EVERY_S = 30.0
_RETRY_AFTER_S = 30.0

LastSeen = Callable[[str], Awaitable[float]]
Told = Callable[[Stack], Awaitable[None]]


class Residency:
    """Args:
    idle_timeout_s: how long nobody must have used a stack before it rests; 0 is for ever.
    max_stacks: loaded at a time; 0 is without limit.
    last_seen: of a stack's id, when a session that needs it last gave a sign of life, in seconds since the epoch.

    Attributes:
        on_woken: called when a stack has come up that did not run.
        on_rested: called when one has been stopped because nobody used it.
    """

    def __init__(self, fleet: Fleet, *, idle_timeout_s: float, max_stacks: int, last_seen: LastSeen) -> None:
        self.on_woken: Told = _nobody
        self.on_rested: Told = _nobody
        self._fleet = fleet
        self._idle_timeout_s = idle_timeout_s
        self._max_stacks = max_stacks
        self._last_seen = last_seen
        self._coming: set[str] = set()  # let in, and perhaps not loaded yet
        self._admission = asyncio.Lock()

    async def wake(self, stack: Stack, *, num_samplers: int = 0) -> None:
        """Returns when it is up, with at least so many replicas; nothing to do where it is.

        Raises:
            LaunchFailed: a server did not become ready.
            TooManyRequests: so many stacks are loaded, and all of them are in use.
        """
        stack.touch()
        was_up = stack.is_up
        await self._admit(stack)
        try:
            await stack.come_up(num_samplers=num_samplers)
        finally:
            self._coming.discard(stack.spec.stack_id)
        if not was_up:
            await _tell(self.on_woken, stack)

    async def wake_quietly(self, stack: Stack) -> None:
        """The same for nobody who could hear of an error: the stack tells whoever looks at it."""
        try:
            await self.wake(stack)
        except (LaunchFailed, ApiError) as error:
            log.warning("%s does not wake: %s", stack.spec.stack_id, error)
        except Exception:
            log.exception("waking %s", stack.spec.stack_id)

    async def check_room(self, stack: Stack | None = None) -> None:
        """Whether that stack, or a new one, could be loaded now; raises as `wake`."""
        async with self._admission:
            if self._needs_room(stack) and await self._least_used(stack) is None:
                raise self._full()

    async def rest(self, stack: Stack, *, unused_s: float) -> bool:
        """Has a stack rest that nobody has used for so long, or that has nothing to do where that is 0."""

        async def is_unused() -> bool:
            idle_s = await self.idle_s(stack)
            return idle_s is not None and idle_s >= unused_s

        if stack.is_pinned or not await stack.go_down(only_if=is_unused):
            return False
        log.info("%s with %s rests", stack.spec.stack_id, stack.spec.base_model)
        await _tell(self.on_rested, stack)
        return True

    async def idle_s(self, stack: Stack) -> float | None:
        """For how long nobody has used it; None where it has work to do, or cannot say."""
        try:
            infos = await asyncio.gather(*(server.ask() for server in stack.servers if server.process.is_running))
            seen_at = await self._last_seen(stack.spec.stack_id)
        except (httpx.HTTPError, ApiError) as error:
            log.debug("%s does not say whether it is used: %r", stack.spec.stack_id, error)
            return None
        if stack.condition == "starting" or any(info.num_pending for info in infos):
            return None
        unseen_s = max(0.0, time.time() - seen_at)
        return min([time.monotonic() - stack.touched_at, unseen_s, *(info.idle_s for info in infos)])

    async def run(self) -> None:
        """Has stacks rest as long as the control plane lives."""
        while self._idle_timeout_s > 0:
            await asyncio.sleep(min(_LOOK_EVERY_S, self._idle_timeout_s / 4))
            for stack in self._fleet.stacks:
                if stack.is_loaded and not stack.lock.locked():
                    await self.rest(stack, unused_s=self._idle_timeout_s)

    async def _admit(self, stack: Stack) -> None:
        async with self._admission:
            if self._needs_room(stack):
                victim = await self._least_used(stack)
                if victim is None or not await self.rest(victim, unused_s=self._spare_after_s):
                    raise self._full()
            self._coming.add(stack.spec.stack_id)

    def _needs_room(self, stack: Stack | None) -> bool:
        if not self._max_stacks or (stack is not None and self._counts(stack)):
            return False
        return sum(self._counts(other) for other in self._fleet.stacks) >= self._max_stacks

    def _counts(self, stack: Stack) -> bool:
        return stack.is_loaded or stack.spec.stack_id in self._coming

    @property
    def _spare_after_s(self) -> float:
        """One gives way to another sooner than it rests by itself, but never while a session is alive."""
        return min(LIVE_S, self._idle_timeout_s) if self._idle_timeout_s else LIVE_S

    async def _least_used(self, wanted: Stack | None) -> Stack | None:
        """The loaded stack that gives way to the wanted one, if there is any."""
        spare: list[tuple[float, Stack]] = []
        for stack in self._fleet.stacks:
            if stack is wanted or stack.is_pinned or not stack.is_loaded or stack.lock.locked():
                continue
            idle_s = await self.idle_s(stack)
            if idle_s is not None and idle_s >= self._spare_after_s:
                spare.append((idle_s, stack))
        return max(spare, key=lambda found: found[0])[1] if spare else None

    def _full(self) -> TooManyRequests:
        return TooManyRequests(
            f"{self._max_stacks} base models are loaded, which is the most this control plane may have, "
            "and all of them are in use",
            hint="deactivate or delete runs, or ask the operator for a higher --max-stacks",
            retry_after_s=_RETRY_AFTER_S,
        )


async def _tell(listener: Told, stack: Stack) -> None:
    """What the listener cannot do now it does the next time."""
    try:
        await listener(stack)
    except ApiError as error:
        log.warning("%s: %s", stack.spec.stack_id, error.message)


async def _nobody(stack: Stack) -> None:
    pass
