"""The version gate on the event loop: a request waits here until its policy is served, or its budget is spent.

Who may be served is decided in `versions`; here is only the waiting, and the pin that keeps a policy
resident while a request uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from farstep_proto.errors import ApiError, Draining, NotFound, PolicyNotReady
from farstep_proto.paths import EXACT_POLICY_VERSION
from farstep_sampler.request import Target
from farstep_sampler.versions import AtLeast, Impossible, PolicyId, Serve, VersionTable, Wait

_RETRY_AFTER_S = 1.0


class Gate:
    """Lets requests through to the policies of a table.

    `recalled` are policies that somebody waits for although they were retired: their run's newest.
    """

    def __init__(self, table: VersionTable) -> None:
        self.recalled: set[PolicyId] = set()
        self._table = table
        self._changed = asyncio.Event()
        self._is_draining = False

    def notify(self) -> None:
        """Makes everyone who waits look at the table again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    def drain(self) -> None:
        """Lets everyone go who waits; nobody waits from now on."""
        self._is_draining = True
        self.notify()

    async def admit(self, target: Target) -> Serve:
        """Waits until a run's policy, or the base model, may answer. Pin it before anything else is awaited.

        Raises:
            PolicyNotReady: not within the target's budget.
            NotFound: exactly a version was asked for that will never come again.
            Draining: the server shuts down.
        """
        try:
            async with asyncio.timeout(target.gate_wait_s):
                return await self._wait_for(target)
        except TimeoutError:
            raise _not_ready(target, self._table.newest_ready(target.source)) from None

    @contextmanager
    def pinned(self, policy: PolicyId) -> Iterator[None]:
        """Keeps a policy resident inside the block."""
        self._table.pin(policy)
        try:
            yield
        finally:
            self._table.unpin(policy)
            if self._table.awaits_slot:
                self.notify()

    async def _wait_for(self, target: Target) -> Serve:
        while True:
            match self._table.decide(target.source, target.gate):
                case Serve() as serve:
                    return serve
                case Impossible(newest):
                    raise _gone(target, newest)
                case Wait(_, recall) if not self._is_draining:
                    if recall is not None:
                        self.recalled.add(recall)
                        self.notify()
                    await self._changed.wait()
                case _:
                    raise Draining("the server is shutting down", retry_after_s=_RETRY_AFTER_S)


def _not_ready(target: Target, newest: int) -> ApiError:
    relation = " or newer" if isinstance(target.gate, AtLeast) else ""
    return PolicyNotReady(
        f"version {target.gate.version}{relation} of {target.source} is not served here yet; the newest is {newest}",
        hint="publish it first, or wait longer",
        retry_after_s=_RETRY_AFTER_S,
        wanted_version=target.gate.version,
        newest_version=newest,
    )


def _gone(target: Target, newest: int) -> ApiError:
    return NotFound(
        f"version {target.gate.version} of {target.source} is not served any more; the newest is {newest}",
        field=EXACT_POLICY_VERSION,
        hint="sample the newest policy, or a checkpoint of the old one",
        wanted_version=target.gate.version,
        newest_version=newest,
    )
