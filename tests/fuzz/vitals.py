"""What a process holds: memory, files, threads."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Vitals:
    rss_mib: float
    num_fds: int
    num_threads: int


def vitals_of(pid: int) -> Vitals:
    process = psutil.Process(pid)
    return Vitals(process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())


def settled_vitals_of(pid: int, *, at_most: Vitals | None = None, within_s: float = 15.0) -> Vitals:
    """As soon as no more files are open than `at_most` has, or the time is up: connections end a little later."""
    deadline = time.monotonic() + within_s
    while True:
        found = vitals_of(pid)
        if at_most is None or found.num_fds <= at_most.num_fds or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
