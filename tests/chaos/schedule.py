"""What goes wrong, to whom, and aimed at which moment: a seed gives the same endless row of faults.

Pure. Moments are named by what the suite can see (a line of a diary, a file that changes, a process that starts), so
that a slower machine meets the same situations later instead of others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tests.chaos.census import Role

Place = Literal["checkpoint", "policy", "journal", "snapshot", "database"]
Line = Literal["intent", "accepted", "result"]

PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class At:
    """Any instant: so many seconds after the fault before."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class OnLine:
    """The `times`-th time from now that a client says `what` of a call of that kind ("" is any), and a bit later."""

    what: Line
    call: str
    times: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class OnFile:
    """The `times`-th change from now in a place of the installation's home, and a bit later."""

    place: Place
    times: int
    delay_s: float


Moment = At | OnLine | OnFile


@dataclass(frozen=True, slots=True)
class Kill:
    """kill -9 of all of them at once. `again`: each as soon as it has been started anew, after so many seconds."""

    moment: Moment
    targets: tuple[Role, ...]
    which: int  # of several of a kind
    again: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Pause:
    """SIGSTOP, and SIGCONT ten seconds later; other faults go on meanwhile."""

    moment: Moment
    target: Role
    which: int


@dataclass(frozen=True, slots=True)
class Network:
    """The next requests of the clients are dropped, doubled, cut, delayed, one after the other as `names` says."""

    moment: Moment
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FullDisk:
    """No byte is left in the home until a client was refused, and `longer_s` more. `kill` hits in the middle of it."""

    moment: Moment
    longer_s: float
    kill: Role | None


@dataclass(frozen=True, slots=True)
class RestartDatabase:
    """PostgreSQL ends at once, as in a crash, and is started `away_s` later."""

    moment: Moment
    away_s: float


Fault = Kill | Pause | Network | FullDisk | RestartDatabase

# A kill of everything costs the longest time to come back from: it is not what mostly happens.
_KILL_WEIGHTS: dict[Role, float] = {"client": 0.33, "trainer": 0.29, "replica": 0.14, "router": 0.10, "control": 0.14}
# Seconds from the start of a process to its first answer, roughly: a second kill falls anywhere in there.
STARTING_S: dict[Role, float] = {"client": 1.5, "trainer": 5.0, "replica": 4.0, "router": 1.5, "control": 7.0}
_NETWORK = ("drop_response", "duplicate", "late_duplicate", "cut_request", "cut_response", "delay", "reset")
_WINDOWS: tuple[tuple[Line, str], ...] = (
    ("accepted", ""),
    ("accepted", "Step"),
    ("intent", "Step"),
    ("intent", "ForwardBackward"),
    ("intent", "Save"),
    ("accepted", "Save"),
    ("intent", "Publish"),
    ("accepted", "Publish"),
    ("intent", "Custom"),
    ("intent", "Load"),
    ("intent", "Reset"),
    ("result", ""),
)
_PLACES: tuple[Place, ...] = ("checkpoint", "policy", "journal", "journal", "snapshot", "snapshot")


def faults(seed: int, wave: int, *, with_disk: bool, with_database: bool) -> Iterator[Fault]:
    draw = random.Random(f"faults {seed} {wave}")
    while True:
        kind = draw.random()
        if kind < 0.70:
            yield _kill(draw)
        elif kind < 0.76:
            yield Pause(_moment(draw), _role(draw), draw.randrange(8))
        elif kind < 0.88:
            yield Network(_moment(draw), tuple(draw.choice(_NETWORK) for _ in range(draw.randint(1, 6))))
        elif kind < 0.94 and with_disk:
            killed: Role | None = draw.choice([None, None, "trainer", "client"])
            yield FullDisk(OnLine("accepted", "", draw.randint(1, 10), 0.0), draw.uniform(0.0, 2.0), killed)
        elif with_database:
            yield RestartDatabase(_moment(draw), draw.uniform(0.0, 3.0))


def first_start(seed: int, wave: int) -> list[Kill]:
    """Of an installation that has never run, somewhere between its first process and its first word."""
    draw = random.Random(f"first start {seed} {wave}")
    roles: tuple[Role, ...] = ("control", "trainer", "replica", "control")
    return [Kill(At(draw.uniform(0.0, 0.7 * STARTING_S["control"])), (draw.choice(roles),), 0) for _ in range(3)]


def _kill(draw: random.Random) -> Kill:
    target = _role(draw)
    targets: tuple[Role, ...] = (target,)
    if draw.random() < 0.12:
        other = _role(draw)
        targets = (target,) if other == target else (target, other)
    again: tuple[float, ...] = ()
    if draw.random() < 0.18:
        again = tuple(draw.uniform(0.0, STARTING_S[target]) for _ in range(draw.choice([1, 1, 2])))
    return Kill(_moment(draw), targets, draw.randrange(8), again)


def _role(draw: random.Random) -> Role:
    return draw.choices(list(_KILL_WEIGHTS), list(_KILL_WEIGHTS.values()))[0]


def _moment(draw: random.Random) -> Moment:
    kind = draw.random()
    if kind < 0.35:
        return At(draw.uniform(0.0, 3.0))
    delay_s = draw.choice([0.0, draw.uniform(0.0, 0.005), draw.uniform(0.0, 0.05)])
    if kind < 0.7:
        what, call = draw.choice(_WINDOWS)
        return OnLine(what, call, draw.randint(1, 20 if call == "" else 3), delay_s)
    return OnFile(draw.choice(_PLACES), draw.randint(1, 12), delay_s)
