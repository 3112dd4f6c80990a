"""What every launcher does alike, be it for this machine or for a cluster: one life of a named process at a time.

A launcher starts, watches and ends processes and keeps what they say. It does not start anything again: that is
decided once, for all launchers, by `launchers.supervision`.

Invariant: the name is the process's identity over all its lives. Its log and its address are the name's, not a life's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

State = Literal["starting", "running", "stopping", "stopped", "died"]

STOP_GRACE_S = 12.0  # a server gives its open requests 10 s


class LaunchFailed(Exception):
    """A process did not become ready; the message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process wants for itself. A launcher for one machine takes it as said; one for a cluster places by it."""

    cpus: int = 1
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One named process.

    Args:
        role: what it is: "trainer", "sampler" or "router".
        argv: the whole command line; the addresses in it are the launcher's host with `ports`.
        env: its environment, complete.
        ports: by what they are for; they must be free when it starts.
    """

    name: str
    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # holds the key
    ports: Mapping[str, int] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)


class Life(Protocol):
    """One life of a process: from its start to its end."""

    @property
    def pid(self) -> int:
        """For people; 0 where it has none that means anything here."""
        ...

    @property
    def started_at(self) -> float:
        """In seconds since the epoch."""
        ...

    @property
    def state(self) -> State: ...

    async def ready(self, *, deadline_s: float) -> Mapping[str, str]:
        """What it announced, as soon as it has.

        Raises:
            LaunchFailed: it ended, or said nothing in time; then it has been stopped.
        """
        ...

    async def ended(self) -> None:
        """Returns when it and all of its own children have ended."""
        ...

    async def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Asks it to end and, after `grace_s` seconds, kills it; returns when it has ended."""
        ...

    def epitaph(self) -> str:
        """How it ended and the end of what it said, for people."""
        ...


class ProcessLog(Protocol):
    """What all lives of one name said: text, the older part of which may be gone."""

    @property
    def location(self) -> str:
        """Where it lies, for people."""
        ...

    async def tail(self, num_lines: int) -> bytes: ...

    def follow(self, num_lines: int) -> AsyncIterator[bytes]:
        """The last lines, then what comes, for ever; b"" now and then where nothing does."""
        ...


class Launcher(Protocol):
    """Starts processes somewhere."""

    async def start(self, spec: ProcessSpec) -> Life:
        """Raises:
        LaunchFailed: it cannot be started at all, also because another has one of its ports.
        """
        ...

    async def adopt(self, spec: ProcessSpec) -> Life | None:
        """The life that an earlier control plane started and that goes on; None where there is none, or cannot be."""
        ...

    def log(self, name: str) -> ProcessLog: ...

    async def trim_logs(self) -> None:
        """Keeps what is kept of logs within bounds; called now and then."""
        ...
