"""Does to a running installation what the schedule says, at the moment that it says, and counts what it did."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from tests.chaos.census import Role
from tests.chaos.events import Events, Seen
from tests.chaos.room import Room
from tests.chaos.schedule import (
    PAUSE_S,
    At,
    Fault,
    FullDisk,
    Kill,
    Moment,
    Network,
    OnFile,
    OnLine,
    Pause,
    RestartDatabase,
)
from tests.chaos.stack import Stack
from tests.chaos.trainees import Supervised
from tests.support import network_faults
from tests.support.network_faults import FaultPlan

MOMENT_S = 12.0  # a moment that does not come is any moment
_BORN_S = 40.0  # until somebody is there to be hit, or is there again
_REFUSED_S = 6.0
_LOOK_EVERY_S = 0.03

_PLACES: dict[str, Callable[[str], bool]] = {
    "checkpoint": lambda path: path.startswith("store/") and "~/" not in path.split("/", 2)[1] + "/",
    "policy": lambda path: path.startswith("store/policies~/"),
    "journal": lambda path: "journal" in path,
    "snapshot": lambda path: "journal" in path and ("snapshot" in path or "safetensors" in path),
    "database": lambda path: path.startswith("control.db"),
}


class Database(Protocol):
    def kill(self) -> None: ...

    def start(self) -> None: ...


class Injector:
    def __init__(
        self,
        stack: Stack,
        trainees: Sequence[Supervised],
        events: Events,
        plan: FaultPlan,
        room: Room | None,
        database: Database | None,
        *,
        log: Callable[[str], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self._stack = stack
        self._trainees = trainees
        self._events = events
        self._plan = plan
        self._room = room
        self._database = database
        self._log = log
        self._pauses: list[threading.Timer] = []

    def perform(self, fault: Fault) -> None:
        match fault:
            case Kill(moment, targets, which, again):
                self._kill(moment, targets, which, again)
            case Pause(moment, target, which):
                self._pause(moment, target, which)
            case Network(moment, names):
                self._await(moment)
                for name in names:
                    self._plan.next_one("/v1/", network_faults.Fault(name))
                self._note("network", " ".join(names))
            case FullDisk(moment, longer_s, killed):
                self._fill(moment, longer_s, killed)
            case RestartDatabase(moment, away_s):
                assert self._database is not None
                self._await(moment)
                self._note("database", f"restarted after {away_s:.1f} s")
                self._database.kill()
                time.sleep(away_s)  # how long it is away
                self._database.start()

    def finish(self) -> None:
        """Everybody goes on who was paused."""
        for timer in self._pauses:
            timer.join()

    def _kill(self, moment: Moment, targets: Sequence[Role], which: int, again: Sequence[float]) -> None:
        victims = [(role, self._pick(role, which)) for role in targets]
        self._await(moment)
        for role, pid in victims:
            self._hit(role, pid or self._pick(role, which), moment)
        for delay_s in again:
            for role, pid in victims[:1]:
                born = self._born(role, pid)
                time.sleep(delay_s)  # any instant of its start
                self._hit(role, born, f"{delay_s:.2f} s after its start")
                victims = [(role, born)]

    def _hit(self, role: Role, pid: int | None, why: object) -> None:
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed[role] += 1
            self._note("kill", f"{role} {pid} ({why})")

    def _pause(self, moment: Moment, target: Role, which: int) -> None:
        pid = self._pick(target, which)
        self._await(moment)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            timer = threading.Timer(PAUSE_S, _go_on, [pid])
            timer.start()
            self._pauses.append(timer)
            self._note("pause", f"{target} {pid} ({moment})")

    def _fill(self, moment: Moment, longer_s: float, killed: Role | None) -> None:
        assert self._room is not None
        self._await(moment)
        with self._events.waiting() as waiting, self._room.full():
            was_refused = waiting.until(lambda seen: seen.what == "refused", timeout_s=_REFUSED_S)
            if killed is not None:
                self._hit(killed, self._pick(killed, 0), "on a full disk")
            time.sleep(longer_s)
        self._note("full_disk", "somebody was refused" if was_refused else "nobody was refused")
        self.counts["refused"] += was_refused

    def _await(self, moment: Moment) -> None:
        match moment:
            case At(delay_s):
                pass
            case OnLine(what, call, times, delay_s):
                self._see(lambda seen: seen.what == what and call in ("", seen.facts.get("call")), times)
            case OnFile(place, times, delay_s):
                self._see(lambda seen: seen.source == "file" and _PLACES[place](seen.what), times)
        time.sleep(delay_s)

    def _see(self, wanted: Callable[[Seen], bool], times: int) -> None:
        with self._events.waiting() as waiting:
            waiting.until(wanted, times=times, timeout_s=MOMENT_S, unless=self._is_quiet)

    def _is_quiet(self) -> bool:
        return bool(self._trainees) and all(trainee.is_over() for trainee in self._trainees)

    def _pick(self, role: Role, which: int) -> int | None:
        """One of that role, as soon as there is one."""
        deadline = time.monotonic() + _BORN_S
        while time.monotonic() < deadline:
            if pids := self._pids(role):
                return pids[which % len(pids)]
            if role == "client" and self._is_quiet():
                return None
            time.sleep(_LOOK_EVERY_S)
        return None

    def _born(self, role: Role, before: int | None) -> int | None:
        """The youngest of that role that is not the one before."""
        deadline = time.monotonic() + _BORN_S
        known = set(self._pids(role)) | {before}
        while time.monotonic() < deadline:
            if fresh := [pid for pid in self._pids(role) if pid not in known]:
                return fresh[-1]
            time.sleep(_LOOK_EVERY_S)
        return None

    def _pids(self, role: Role) -> list[int]:
        if role == "client":
            return [pid for trainee in self._trainees if (pid := trainee.pid()) is not None]
        if role == "control":
            return [pid for pid in [self._stack.pid()] if pid is not None]
        return self._stack.processes().get(role, [])

    def _note(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self._log(f"{kind}: {what}")


def _go_on(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
