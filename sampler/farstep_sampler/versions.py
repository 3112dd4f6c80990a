"""Which policies are resident, in which adapter slot, and whether a request may be served.

A pure state machine: no clock, no tensor, no socket, no lock. A policy goes

    announced ──▶ loading ──▶ ready ──▶ retired (forgotten)
         └────────────┴──▶ failed (forgotten)

Slot 0 is the base model, which is version 0 of every run. The other slots hold the policies used last: when
a new one needs room, the least recently used goes that nobody pins, and one that is not its run's newest
goes first.

Invariant: a slot belongs to one policy at most, and a pinned policy keeps its slot.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicyId:
    """One set of weights: `source` is a run id, the path of a checkpoint, or empty for the base model."""

    source: str
    version: int

    def __str__(self) -> str:
        return f"{self.source or 'base'}@v{self.version}"


BASE = PolicyId("", 0)
BASE_SLOT = 0


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The gate `X-Min-Policy-Version`; without any gate, `AtLeast(0)`."""

    version: int


@dataclass(frozen=True, slots=True)
class Exactly:
    """The gate `X-Policy-Version`."""

    version: int


VersionGate = AtLeast | Exactly


@dataclass(frozen=True, slots=True)
class Serve:
    policy: PolicyId
    slot: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet. `recall` is a policy that was retired and must be announced again."""

    newest: int
    recall: PolicyId | None = None


@dataclass(frozen=True, slots=True)
class Impossible:
    """Never: a version that was retired, or passed over, and that no feed sends again."""

    newest: int


Decision = Serve | Wait | Impossible


@dataclass(frozen=True, slots=True)
class Load:
    """An order to put a policy into a slot; `retired` is the one that had to leave it."""

    policy: PolicyId
    slot: int
    retired: PolicyId | None


class State(enum.Enum):
    ANNOUNCED = "announced"
    LOADING = "loading"
    READY = "ready"


@dataclass(slots=True)
class _Entry:
    state: State
    slot: int = -1
    num_pins: int = 0
    last_used: int = 0


class VersionTable:
    """The policies of one replica.

    Args:
        num_slots: how many policies besides the base model can be resident.
    """

    def __init__(self, *, num_slots: int) -> None:
        assert num_slots >= 1
        self.num_slots = num_slots
        self._entries: dict[PolicyId, _Entry] = {}  # in the order of announcement
        self._free = list(range(num_slots, 0, -1))
        self._newest_seen: dict[str, int] = {}  # run id -> newest version ever announced
        self._newest_ready: dict[str, int] = {}  # run id -> newest version that was ever ready
        self._num_uses = 0

    def announce(self, policy: PolicyId) -> bool:
        """Enters a policy whose weights are at hand; False if there is nothing to do for it.

        A run's versions only go up: one that is older than the newest seen is refused, and so is a
        repetition, unless the newest was retired and comes again.
        """
        if policy in self._entries or policy.version < self.newest_seen(policy.source):
            return False
        self._entries[policy] = _Entry(State.ANNOUNCED)
        self._newest_seen[policy.source] = policy.version
        return True

    def next_load(self) -> Load | None:
        """Takes a slot for the policy announced first; None if there is none, or every slot is pinned."""
        policy = next((p for p, entry in self._entries.items() if entry.state is State.ANNOUNCED), None)
        if policy is None:
            return None
        retired = None
        if not self._free:
            retired = self._victim()
            if retired is None:
                return None
            self._free.append(self._entries.pop(retired).slot)
        entry = self._entries[policy]
        entry.state, entry.slot = State.LOADING, self._free.pop()
        return Load(policy, entry.slot, retired)

    def mark_ready(self, policy: PolicyId) -> None:
        entry = self._entries[policy]
        assert entry.state is State.LOADING, f"{policy} is {entry.state}"
        entry.state = State.READY
        self._touch(entry)
        self._newest_ready[policy.source] = max(policy.version, self._newest_ready.get(policy.source, 0))

    def mark_failed(self, policy: PolicyId) -> None:
        """Forgets a policy whose weights could not be loaded; its slot is free again."""
        entry = self._entries.pop(policy)
        assert entry.state is not State.READY
        if entry.slot >= 0:
            self._free.append(entry.slot)
        known = [p.version for p in self._entries if p.source == policy.source]
        self._newest_seen[policy.source] = max([self.newest_ready(policy.source), *known])

    def pin(self, policy: PolicyId) -> None:
        """Keeps a ready policy resident until `unpin`; every request in flight holds one pin."""
        if policy == BASE:
            return
        entry = self._entries[policy]
        assert entry.state is State.READY
        entry.num_pins += 1
        self._touch(entry)

    def unpin(self, policy: PolicyId) -> None:
        if policy == BASE:
            return
        entry = self._entries[policy]
        assert entry.num_pins > 0
        entry.num_pins -= 1

    def decide(self, source: str, gate: VersionGate) -> Decision:
        """Who answers a request for a run under its gate; `source` empty is the base model."""
        newest = self._newest_ready.get(source, 0)
        match gate:
            case Exactly(0):
                return Serve(BASE, BASE_SLOT)
            case AtLeast(0) if newest == 0:
                return Serve(BASE, BASE_SLOT)
            case Exactly(version):
                return self._decide_exactly(PolicyId(source, version), newest)
            case AtLeast(version):
                best = max((p.version for p in self._ready(source) if p.version >= version), default=None)
                if best is not None:
                    return self._serve(PolicyId(source, best))
                return Wait(newest, self._recallable(source) if newest >= version else None)

    def newest_ready(self, source: str) -> int:
        """0 before a run's first policy can be served: the base model is version 0."""
        return self._newest_ready.get(source, 0)

    def newest_seen(self, source: str) -> int:
        return self._newest_seen.get(source, 0)

    def newest_versions(self) -> dict[str, int]:
        """source -> newest version that was ever ready."""
        return dict(self._newest_ready)

    @property
    def awaits_slot(self) -> bool:
        """Whether an announced policy is yet to be loaded."""
        return any(entry.state is State.ANNOUNCED for entry in self._entries.values())

    def resident_versions(self, source: str) -> list[int]:
        """The versions that can be served at once, oldest first."""
        return sorted(policy.version for policy in self._ready(source))

    def ready(self, policy: PolicyId) -> Serve | None:
        entry = self._entries.get(policy)
        return Serve(policy, entry.slot) if entry is not None and entry.state is State.READY else None

    def _decide_exactly(self, policy: PolicyId, newest: int) -> Decision:
        entry = self._entries.get(policy)
        if entry is None:
            seen = self.newest_seen(policy.source)
            if policy.version < seen:
                return Impossible(newest)
            return Wait(newest, policy if policy.version == newest else None)
        return self._serve(policy) if entry.state is State.READY else Wait(newest)

    def _serve(self, policy: PolicyId) -> Serve:
        return Serve(policy, self._entries[policy].slot)

    def _recallable(self, source: str) -> PolicyId | None:
        newest = PolicyId(source, self.newest_ready(source))
        is_gone = newest not in self._entries and newest.version == self.newest_seen(source)
        return newest if is_gone else None

    def _ready(self, source: str) -> list[PolicyId]:
        return [p for p, entry in self._entries.items() if p.source == source and entry.state is State.READY]

    def _victim(self) -> PolicyId | None:
        idle = [p for p, entry in self._entries.items() if entry.state is State.READY and not entry.num_pins]
        return min(idle, key=self._worth, default=None)

    def _worth(self, policy: PolicyId) -> tuple[bool, int]:
        is_newest = policy.version == self.newest_ready(policy.source)
        return is_newest, self._entries[policy].last_used

    def _touch(self, entry: _Entry) -> None:
        self._num_uses += 1
        entry.last_used = self._num_uses
