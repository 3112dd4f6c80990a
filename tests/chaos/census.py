"""Which processes there are, by the mark in their environment: who is who, what they hold, what they leave behind."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil

Role = Literal["control", "trainer", "replica", "router", "client", "other"]

MARK = "FARSTEP_CHAOS_MARK"
_MODULES: Mapping[str, Role] = {
    "farstep_infra": "control",
    "farstep_worker": "trainer",
    "farstep_sampler": "replica",
    "farstep_sampler.router": "router",
    "tests.chaos.client": "client",
}
GONE_S = 30.0  # a server gives its open requests ten seconds, and its parent looks on for a few more


def by_role(mark: str) -> dict[Role, list[int]]:
    """Living processes with that mark, oldest first."""
    found: dict[Role, list[tuple[float, int]]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.setdefault(_role(process.cmdline()), []).append((process.create_time(), process.pid))
    return {role: [pid for _, pid in sorted(each)] for role, each in found.items()}


def ports(mark: str) -> set[int]:
    """On which they listen."""
    pids = {pid for each in by_role(mark).values() for pid in each}
    return {port for port, pid in _listening() if pid in pids}


def left_behind(mark: str, had: set[int], scratch: Path, *, ended_at: float) -> list[str]:
    """What outlived its installation, after the time that it has for its end.

    Args:
        had: the ports that it listened on.
        scratch: where its temporary files were.
        ended_at: when it was told to stop; who began later has taken a port that was free.
    """
    deadline = time.monotonic() + GONE_S
    while by_role(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes = [f"process {pid} ({role})" for role, pids in by_role(mark).items() for pid in pids]
    listening = [
        f"port {port}, of process {pid}"
        for port, pid in _listening()
        if port in had and (pid is None or _began_at(pid) <= ended_at)
    ]
    return [*processes, *listening, *(f"file {path}" for path in sorted(scratch.rglob("*")) if path.is_file())]


def dump_stacks(mark: str) -> None:
    """Every process writes the stacks of its threads to its log, and ends: PYTHONFAULTHANDLER is set in all of them."""
    for pids in by_role(mark).values():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGABRT)


def end_all(mark: str) -> None:
    for pids in by_role(mark).values():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _listening() -> list[tuple[int, int | None]]:
    """Ports with the processes that hold them."""
    connections = psutil.net_connections("tcp")
    return [(each.laddr.port, each.pid) for each in connections if each.status == psutil.CONN_LISTEN]


def _began_at(pid: int) -> float:
    with suppress(psutil.Error):
        return psutil.Process(pid).create_time()
    return math.inf  # it has ended


def _role(argv: list[str]) -> Role:
    for flag, module in itertools.pairwise(argv):
        if flag == "-m":
            return _MODULES.get(module, "other")
    return "other"
