"""Which policies are resident, in which adapter slot, and whether a request may be served.

A pure state machine: no clock, no tensor, no socket, no lock. A policy goes

    announced ──▶ loading ──▶ ready ──▶ (leaving) ──▶ retired ──▶ recalled: announced again, or lost
         └────────────┴──▶ failed

Slot 0 is the base model, which is version 0 of every run. The other slots hold the policies used last, and of each
run not more than so many (`eviction`). One that must go while it is in use is *leaving*: those that use it end on
it, and nobody new begins, so that whoever waits for a slot gets one.

Invariant: a slot belongs to one policy at most, and a pinned policy keeps its slot.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass

from farstep_sampler.eviction import Resident, choose_victim
from farstep_sampler.versions import (
    BASE,
    BASE_SLOT,
    AtLeast,
    Decision,
    Exactly,
    Impossible,
    Load,
    PolicyId,
    Serve,
    VersionGate,
    Wait,
)

_MOST_LOST = 4096


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
    is_leaving: bool = False

    @property
    def is_open(self) -> bool:
        """Whether a new request may use it."""
        return self.state is State.READY and not self.is_leaving


@dataclass(slots=True)
class _Line:
    """A run's numbering: its present history, the newest version ever announced, and ever ready."""

    history: str
    project: str = ""
    newest_seen: int = 0
    newest_ready: int = 0


class VersionTable:
    """The policies of one replica.

    Args:
        num_slots: how many policies besides the base model can be resident.
        per_run: how many of them of one run; more only while they are in use.
    """

    def __init__(self, *, num_slots: int, per_run: int | None = None) -> None:
        assert num_slots >= 1
        self.num_slots = num_slots
        self.revision = 0  # grows whenever what can be served changes
        self._per_run = per_run or num_slots
        self._entries: dict[PolicyId, _Entry] = {}  # in the order of announcement
        self._free = list(range(num_slots, 0, -1))
        self._lines: dict[str, _Line] = {}
        self._lost: OrderedDict[PolicyId, None] = OrderedDict()
        self._num_uses = 0

    # Policies come and go

    def announce(self, policy: PolicyId) -> bool:
        """Enters a policy whose weights are at hand; False if there is nothing to do for it.

        Within a history versions only go up: one that is older than the newest seen is refused, and so is a
        repetition, unless the newest was retired and comes again. Another history takes the place of the one before.
        """
        line = self._lines.get(policy.source)
        if line is None or line.history != policy.history:
            line = self._lines[policy.source] = _Line(policy.history, policy.project)
            self.revision += 1
        if policy in self._entries or policy.version < line.newest_seen:
            return False
        line.newest_seen = policy.version
        line.project = policy.project
        self._enter(policy)
        return True

    def readmit(self, policy: PolicyId) -> bool:
        """Enters a policy of the present history that was fetched back; False if it is here, or of another one."""
        line = self._lines.get(policy.source)
        if policy in self._entries or line is None or line.history != policy.history:
            return False
        self._enter(policy)
        return True

    def withdraw(self, policy: PolicyId) -> bool:
        """Passes over a policy that waits for a slot; False if it does not."""
        entry = self._entries.get(policy)
        if entry is None or entry.state is not State.ANNOUNCED:
            return False
        del self._entries[policy]
        return True

    def next_load(self) -> Load | None:
        """Takes a slot for the policy announced first; None if there is none, or every slot is in use."""
        policy = next((p for p, entry in self._entries.items() if entry.state is State.ANNOUNCED), None)
        if policy is None or self._free:
            self._let_stay()
        if policy is None:
            return None
        victim = self._victim(policy)
        if victim is not None and self._entries[victim].num_pins:
            self._entries[victim].is_leaving = True
            self.revision += 1
            return None
        if victim is not None:
            self._retire(victim)
        if not self._free:
            return None
        entry = self._entries[policy]
        entry.state, entry.slot = State.LOADING, self._free.pop()
        return Load(policy, entry.slot, victim)

    def mark_ready(self, policy: PolicyId) -> None:
        entry = self._entries[policy]
        assert entry.state is State.LOADING, f"{policy} is {entry.state}"
        entry.state = State.READY
        self._touch(entry)
        line = self._lines[policy.source]
        if line.history == policy.history:
            line.newest_ready = max(policy.version, line.newest_ready)
        self.revision += 1

    def mark_failed(self, policy: PolicyId) -> None:
        """Forgets a policy whose weights could not be loaded; its slot is free again.

        One that was fetched back is lost: what is kept of it is no good.
        """
        entry = self._entries.pop(policy)
        assert entry.state is not State.READY
        if entry.slot >= 0:
            self._free.append(entry.slot)
        line = self._lines[policy.source]
        if line.history == policy.history:
            if policy.version <= line.newest_ready:
                self.mark_lost(policy)
            others = [p.version for p in self._entries if (p.source, p.history) == (policy.source, policy.history)]
            line.newest_seen = max([line.newest_ready, *others])
        self.revision += 1

    def mark_lost(self, policy: PolicyId) -> None:
        """Notes that nobody keeps a retired policy any more."""
        self._lost[policy] = None
        self.revision += 1
        while len(self._lost) > _MOST_LOST:
            self._lost.popitem(last=False)

    def pin(self, policy: PolicyId) -> None:
        """Keeps a ready policy resident until `unpin`; every request in flight holds one pin."""
        if policy == BASE:
            return
        entry = self._entries[policy]
        assert entry.is_open
        entry.num_pins += 1
        self._touch(entry)

    def unpin(self, policy: PolicyId) -> None:
        if policy == BASE:
            return
        entry = self._entries[policy]
        assert entry.num_pins > 0
        entry.num_pins -= 1

    # Questions

    def decide(self, source: str, gate: VersionGate) -> Decision:
        """Who answers a request for a run under its gate; `source` empty is the base model."""
        newest = self.newest_ready(source)
        match gate:
            case Exactly(0):
                return Serve(BASE, BASE_SLOT)
            case AtLeast(0) if newest == 0:
                return Serve(BASE, BASE_SLOT)
            case Exactly(version):
                return self._decide_exactly(source, version)
            case AtLeast(version):
                return self._decide_at_least(source, version)

    def newest_ready(self, source: str) -> int:
        """0 before a run's first policy can be served: the base model is version 0."""
        return self._lines[source].newest_ready if source in self._lines else 0

    def newest_seen(self, source: str) -> int:
        return self._lines[source].newest_seen if source in self._lines else 0

    def history(self, source: str) -> str:
        return self._lines[source].history if source in self._lines else ""

    def project(self, source: str) -> str | None:
        """Whose a run or checkpoint is; None where nothing of it was ever here."""
        return self._lines[source].project if source in self._lines else None

    def newest_versions(self) -> dict[str, int]:
        """source -> newest version that was ever ready."""
        return {source: line.newest_ready for source, line in self._lines.items() if line.newest_ready}

    @property
    def awaits_slot(self) -> bool:
        """Whether an announced policy is yet to be loaded."""
        return any(entry.state is State.ANNOUNCED for entry in self._entries.values())

    def resident_versions(self, source: str) -> list[int]:
        """The versions that can be served at once, oldest first."""
        return sorted(policy.version for policy in self._open(source))

    def ready(self, policy: PolicyId) -> Serve | None:
        entry = self._entries.get(policy)
        return Serve(policy, entry.slot) if entry is not None and entry.is_open else None

    def has(self, policy: PolicyId) -> bool:
        """Whether it is here, ready or not yet."""
        return policy in self._entries

    def _decide_exactly(self, source: str, version: int) -> Decision:
        policy, newest = self._policy(source, version), self.newest_ready(source)
        entry = self._entries.get(policy)
        if entry is not None:
            return self._serve(policy) if entry.is_open else Wait(newest)
        if version > self.newest_seen(source):
            return Wait(newest)
        if policy in self._lost:
            return Impossible(newest, tuple(self.resident_versions(source)))
        return Wait(newest, policy)

    def _decide_at_least(self, source: str, version: int) -> Decision:
        """The newest, also where that must be fetched back first; an older one only where the newest is lost."""
        newest = self._policy(source, self.newest_ready(source))
        if newest.version < version:
            return Wait(newest.version)
        entry = self._entries.get(newest)
        if entry is not None:
            return self._serve(newest) if entry.is_open else Wait(newest.version)
        if newest not in self._lost:
            is_next = newest.version == self.newest_seen(source)  # else a newer one is about to be here
            return Wait(newest.version, newest if is_next else None)
        best = max((p.version for p in self._open(source) if p.version >= version), default=None)
        return Wait(newest.version) if best is None else self._serve(self._policy(source, best))

    def _policy(self, source: str, version: int) -> PolicyId:
        return PolicyId(source, version, self.history(source))

    def _is_current(self, policy: PolicyId) -> bool:
        return self.history(policy.source) == policy.history

    def _serve(self, policy: PolicyId) -> Serve:
        return Serve(policy, self._entries[policy].slot)

    def _open(self, source: str) -> list[PolicyId]:
        history = self.history(source)
        return [
            p for p, entry in self._entries.items() if p.source == source and p.history == history and entry.is_open
        ]

    # Slots

    def _enter(self, policy: PolicyId) -> None:
        self._entries[policy] = _Entry(State.ANNOUNCED)
        self._lost.pop(policy, None)

    def _victim(self, incoming: PolicyId) -> PolicyId | None:
        leaving = [p for p, entry in self._entries.items() if entry.is_leaving]
        if leaving:  # one at a time; when it is free it makes room for whoever is first then
            return min(leaving, key=lambda p: self._entries[p].num_pins)
        residents = [
            Resident(
                policy=p,
                is_pinned=entry.num_pins > 0,
                is_newest=self._is_current(p) and p.version == self.newest_ready(p.source),
                is_over=not self._is_current(p),
                last_used=entry.last_used,
            )
            for p, entry in self._entries.items()
            if entry.state is State.READY
        ]
        chosen = choose_victim(residents, incoming=incoming, per_run=self._per_run, num_free=len(self._free))
        return None if chosen is None else chosen.policy

    def _let_stay(self) -> None:
        """Nobody has to leave any more: what wanted the slot has another, or did not come to anything."""
        for entry in self._entries.values():
            self.revision += entry.is_leaving
            entry.is_leaving = False

    def _retire(self, policy: PolicyId) -> None:
        self._free.append(self._entries.pop(policy).slot)
        self.revision += 1

    def _touch(self, entry: _Entry) -> None:
        self._num_uses += 1
        entry.last_used = self._num_uses
