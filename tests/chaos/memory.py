"""Whether processes that live long grow: what each holds when it has settled, against what it holds later."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from tests.chaos.census import Role

SETTLED_S = 30.0  # caches, adapter slots and allocators have found their size by then
GROWTH_MIB = 300.0


@dataclass(slots=True)
class _Life:
    role: Role
    settled_mib: float = 0.0
    last_mib: float = 0.0


class Memory:
    def __init__(self) -> None:
        self._lives: dict[tuple[int, float], _Life] = {}
        self.most_mib: dict[Role, float] = {}

    def look(self, processes: dict[Role, list[int]]) -> None:
        for role, pids in processes.items():
            for pid in pids:
                self._look_at(role, pid)

    def grown(self) -> list[str]:
        """Those that grew by more than `GROWTH_MIB` after they had settled."""
        return [
            f"{life.role} {pid} grew from {life.settled_mib:.0f} to {life.last_mib:.0f} MiB"
            for (pid, _), life in self._lives.items()
            if life.settled_mib and life.last_mib > life.settled_mib + GROWTH_MIB
        ]

    def _look_at(self, role: Role, pid: int) -> None:
        try:
            process = psutil.Process(pid)
            born_at, mib = process.create_time(), process.memory_info().rss / 2**20
        except psutil.Error:
            return
        self.most_mib[role] = max(self.most_mib.get(role, 0.0), mib)
        life = self._lives.setdefault((pid, born_at), _Life(role))
        life.last_mib = mib
        if not life.settled_mib and time.time() - born_at > SETTLED_S:
            life.settled_mib = mib
