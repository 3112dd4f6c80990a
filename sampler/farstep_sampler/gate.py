"""The version gate on the event loop: a request waits here until its policy is served, or its budget is spent.

Who may be served is decided in `versions`; here is only the waiting, and the pin that keeps a policy
resident while a request uses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from farstep_proto.errors import ApiError, Draining, NotFound, PolicyNotReady
from farstep_proto.paths import EXACT_POLICY_VERSION
from farstep_sampler.request import Target
from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import AtLeast, Impossible, PolicyId, Serve, Wait

_RETRY_AFTER_S = 1.0


class Pin:
    """The hold of one request on the policy that it samples."""

    def __init__(self, table: VersionTable, policy: PolicyId) -> None:
        table.pin(policy)
        self._table = table
        self.policy = policy

    def move(self, to: PolicyId) -> None:
        """Holds another policy from now on, which must be ready."""
        self._table.pin(to)
        self._table.unpin(self.policy)
        self.policy = to


class Gate:
    """Lets requests through to the policies of a table.

    `on_recall` is told, as often as anyone looks, which policy somebody waits for although it was retired.
    """

    def __init__(self, table: VersionTable) -> None:
        self.on_recall: Callable[[PolicyId], None] = lambda policy: None
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

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    async def admit(self, target: Target) -> Serve:
        """Waits until a run's policy, or the base model, may answer. Pin it before anything else is awaited.

        Raises:
            PolicyNotReady: not within the target's budget.
            NotFound: exactly a version was asked for that will never come again.
            Draining: the server shuts down.
        """
        deadline, is_late = asyncio.get_running_loop().time() + target.gate_wait_s, False
        while True:
            changed = self._changed
            match self._table.decide(self.seen(target), target.gate):
                case Serve() as serve:
                    return serve
                case Impossible() as impossible:
                    raise _gone(target, impossible)
                case Wait() if is_late:  # on a busy loop it may have come together with the deadline: one more look
                    raise _not_ready(target, self._table.newest_ready(self.seen(target)))
                case Wait(_, recall) if not self._is_draining:
                    if recall is not None:
                        self.on_recall(recall)
                    is_late = await _is_past(deadline, changed)
                case _:
                    raise Draining("the server is shutting down", retry_after_s=_RETRY_AFTER_S)

    def seen(self, target: Target) -> str:
        """The target's source as its caller sees it: another project's run is one of which nobody has heard.

        Of such a run there is the base model, its version 0, and every other version is waited for.
        """
        project = self._table.project(target.source)
        return target.source if project is None or target.caller.may_see(project) else ""

    @contextmanager
    def pinned(self, policy: PolicyId) -> Iterator[Pin]:
        """Keeps a policy resident inside the block; the pin can move to another."""
        pin = Pin(self._table, policy)
        try:
            yield pin
        finally:
            self._table.unpin(pin.policy)
            if self._table.awaits_slot:
                self.notify()


async def _is_past(deadline: float, changed: asyncio.Event) -> bool:
    """Waits for a change until then; whether there was none."""
    try:
        async with asyncio.timeout_at(deadline):
            await changed.wait()
    except TimeoutError:
        return True
    return False


def _not_ready(target: Target, newest: int) -> ApiError:
    relation = " or newer" if isinstance(target.gate, AtLeast) else ""
    return PolicyNotReady(
        f"version {target.gate.version}{relation} of {target.source} is not served here yet; the newest is {newest}",
        hint="publish it first, or wait longer",
        retry_after_s=_RETRY_AFTER_S,
        wanted_version=target.gate.version,
        newest_version=newest,
    )


def _gone(target: Target, impossible: Impossible) -> ApiError:
    there = ", ".join(map(str, impossible.resident)) or "none"
    return NotFound(
        f"version {target.gate.version} of {target.source} is not kept any more; the newest is {impossible.newest}, "
        f"at hand are {there}",
        field=EXACT_POLICY_VERSION,
        hint="sample another version, or a checkpoint of this one",
        wanted_version=target.gate.version,
        newest_version=impossible.newest,
    )
