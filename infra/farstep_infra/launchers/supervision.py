"""A named process that is kept alive: started again when it dies, until it is stopped or dies too often.

It knows launchers and lives, not what the process does. When to start again is `restarts`' to say; every life has the
same name, and whatever command line its owner gives it then.

Invariant: at most one life at a time. Nothing of a life goes on when the next one begins.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Literal

from farstep_infra.launchers.base import STOP_GRACE_S, Launcher, LaunchFailed, Life, ProcessLog, ProcessSpec
from farstep_infra.launchers.restarts import GiveUp, RestartPolicy, Row, StartAgain

log = logging.getLogger(__name__)

_JITTER = random.Random()  # its own: what a program draws from `random` must not depend on our restarts

Condition = Literal["stopped", "starting", "running", "restarting", "failed", "stopping"]

READY_DEADLINE_S = 3600.0  # a large model may have to be downloaded first


class Supervised:
    """Args:
    spec: asked for at every start.
    greet: called with what a life announced before it counts as running; raises LaunchFailed where it will not do.
    was_ready: whether it has ever been ready. Of one that never was, the first death is the last: what it cannot do
        now it could not do before, and whoever asked for it is told at once.
    """

    def __init__(
        self,
        launcher: Launcher,
        name: str,
        spec: Callable[[], ProcessSpec],
        *,
        greet: Callable[[Mapping[str, str]], Awaitable[None]],
        was_ready: bool = False,
        policy: RestartPolicy | None = None,
    ) -> None:
        self.name = name
        self.condition: Condition = "stopped"
        self.num_restarts = 0
        self.last_words = ""  # how the last life ended, for people
        self.was_ready = was_ready
        self._launcher = launcher
        self._spec = spec
        self._greet = greet
        self._policy = policy or RestartPolicy()
        self._life: Life | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._verdict = ""  # why we ended a life ourselves

    @property
    def is_running(self) -> bool:
        return self.condition == "running"

    @property
    def pid(self) -> int:
        return self._life.pid if self._life is not None else 0

    @property
    def started_at(self) -> float:
        return self._life.started_at if self._life is not None else 0.0

    @property
    def log(self) -> ProcessLog:
        return self._launcher.log(self.name)

    def start(self) -> None:
        """Begins to keep it alive; nothing where that is done already. Of one that was given up, anew."""
        if self._task is not None and not self._task.done():
            return
        self._become("starting")
        self._task = asyncio.create_task(self._supervise(), name=f"supervise-{self.name}")

    async def ready(self) -> None:
        """Returns when it runs, be it after several lives.

        Raises:
            LaunchFailed: it was given up, or is stopped.
        """
        while self.condition in ("starting", "restarting"):
            await self._changed.wait()
        if self.condition != "running":
            raise LaunchFailed(self.last_words or f"{self.name} is {self.condition}")

    async def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """In order: asked to end, killed after `grace_s` seconds, and not started again."""
        if self._task is None:
            return
        self._become("stopping")
        if self._life is not None:
            await self._life.stop(grace_s=grace_s)
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        self._become("stopped")

    async def kill(self, reason: str) -> None:
        """Ends this life without any grace; the next one follows as after any death."""
        life = self._life
        if life is not None and self.condition == "running":
            self._verdict = f"{self.name} was killed: {reason}"
            await life.stop(grace_s=0)
            while self._life is life:
                await self._changed.wait()

    async def _supervise(self) -> None:
        try:
            await self._keep_alive()
        except Exception as error:
            log.exception("supervising %s", self.name)
            self.last_words = f"the control plane made a mistake with {self.name} ({error!r}); its log has the details"
            self._become("failed")

    async def _keep_alive(self) -> None:
        row = Row()
        while True:
            ready_s = await self._one_life()
            if self.condition == "stopping":
                return
            row = row.after_death(ready_s, self._policy)
            policy = self._policy if self.was_ready else replace(self._policy, max_quick_deaths=1)
            match row.next_step(policy, chance=_JITTER.random()):
                case GiveUp():
                    log.error("%s is given up after %d quick deaths: %s", self.name, row.num_deaths, self.last_words)
                    self._become("failed")
                    return
                case StartAgain(after_s):
                    log.warning("%s is started again in %.1f s: %s", self.name, after_s, self.last_words)
                    self._become("restarting")
                    await asyncio.sleep(after_s)
                    self.num_restarts += 1

    async def _one_life(self) -> float:
        """From its start to its end; for how many seconds it was ready."""
        self._verdict = ""
        life: Life | None = None
        try:
            spec = self._spec()
            life = self._life = await self._launcher.adopt(spec) or await self._launcher.start(spec)
            await self._greet(await life.ready(deadline_s=READY_DEADLINE_S))
            ready_at = time.monotonic()
            if self.condition != "stopping":
                self.was_ready = True
                self._become("running")
            await life.ended()
        except LaunchFailed as error:
            self.last_words = str(error)
            return 0.0
        finally:
            if life is not None:
                await life.stop(grace_s=0)
                self._life = None
        self.last_words = self._verdict or life.epitaph()
        return time.monotonic() - ready_at

    def _become(self, condition: Condition) -> None:
        self.condition = condition
        self._changed.set()
        self._changed = asyncio.Event()
