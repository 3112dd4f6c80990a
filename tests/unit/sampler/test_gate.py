"""Gate races by random walks: publish, swap, sample, drain, die, on two replicas behind the router's choice.

The table, the gate and the choice are the real ones; what loads and fetches is played by the walk, so that it may
take any time and fail. What is kept of a run's policies is the last three.
"""

import asyncio
import time
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from farstep_proto.errors import ApiError, Draining, NotFound, PolicyNotReady
from farstep_sampler.gate import Gate, Pin
from farstep_sampler.request import Target
from farstep_sampler.router.routing import Candidate, choose, satisfying
from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import BASE, AtLeast, Exactly, Load, PolicyId, Serve, VersionGate

KEPT = 3
RUNS = ("a", "b")
NUM_SLOTS = 2


@dataclass(eq=False)
class Request:
    """One on its way: `task` ends when the gate lets it through, and it then holds `pin` until it is released."""

    run_id: str
    gate: VersionGate
    task: "asyncio.Task[None] | None" = None
    serve: Serve | None = None
    pin: Pin | None = None
    error: ApiError | None = None
    newest_when_served: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)


class Replica:
    def __init__(self) -> None:
        self.table = VersionTable(num_slots=NUM_SLOTS, per_run=2)
        self.gate = Gate(self.table)
        self.recalls: dict[PolicyId, None] = {}
        self.gate.on_recall = lambda policy: self.recalls.setdefault(policy)
        self.loading: list[Load] = []
        self.requests: list[Request] = []

    async def run(self, request: Request) -> None:
        try:
            serve = await self.gate.admit(Target(request.run_id, request.gate, gate_wait_s=3600))
        except ApiError as error:
            request.error = error
            return
        request.newest_when_served = self.table.newest_ready(request.run_id)
        with self.gate.pinned(serve.policy) as pin:
            request.serve, request.pin = serve, pin
            await request.release.wait()
        request.pin = None

    def begin_load(self) -> None:
        order = self.table.next_load()
        self.gate.notify()
        if order is not None:
            self.loading.append(order)

    def finish_load(self, *, is_good: bool) -> None:
        order = self.loading.pop()
        (self.table.mark_ready if is_good else self.table.mark_failed)(order.policy)
        self.gate.notify()


class Fleet(RuleBasedStateMachine):
    runs = st.sampled_from(RUNS)
    which = st.sampled_from([0, 1])

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.replicas = [Replica(), Replica()]
        self.published = dict.fromkeys(RUNS, 0)
        self.requests: list[Request] = []

    @initialize()
    def settle(self) -> None:
        for _ in range(4):  # enough for every task that can go on to do so
            self.loop.run_until_complete(asyncio.sleep(0))
        for request in self.requests:
            if request.task is not None and request.task.done() and not request.task.cancelled():
                request.task.result()  # a refusal is in `error`; anything else is a defect

    @rule(run_id=runs, seen_by=st.sets(st.sampled_from([0, 1])))
    def publish(self, run_id: str, seen_by: set[int]) -> None:
        """A slow replica does not hear of it."""
        self.published[run_id] += 1
        for index in seen_by:
            self.replicas[index].table.announce(PolicyId(run_id, self.published[run_id]))
            self.replicas[index].gate.notify()
        self.settle()

    @rule(index=which)
    def swap(self, index: int) -> None:
        replica = self.replicas[index]
        if not replica.loading:  # the swapper loads one after another
            replica.begin_load()
        self.settle()

    @precondition(lambda self: any(replica.loading for replica in self.replicas))
    @rule(index=which, is_good=st.sampled_from([True, True, True, False]))
    def loaded(self, index: int, is_good: bool) -> None:
        if self.replicas[index].loading:
            self.replicas[index].finish_load(is_good=is_good)
        self.settle()

    @rule(run_id=runs)
    def arrive(self, run_id: str) -> None:
        """A policy that both hear of and load at once, where there is a slot."""
        self.publish(run_id, {0, 1})
        for replica in self.replicas:
            self._quiesce(replica, rounds=2)

    @rule(index=which)
    def fetch_back(self, index: int) -> None:
        self._fetch_back(self.replicas[index])
        self.settle()

    def _quiesce(self, replica: Replica, *, rounds: int) -> None:
        for _ in range(rounds):
            self._fetch_back(replica)
            if replica.loading:
                replica.finish_load(is_good=True)
            else:
                replica.begin_load()
            self.settle()

    def _fetch_back(self, replica: Replica) -> None:
        for policy in list(replica.recalls):
            del replica.recalls[policy]
            if policy.version > self.published[policy.source] - KEPT:
                replica.table.readmit(policy)
            else:
                replica.table.mark_lost(policy)
        replica.gate.notify()

    @rule(wants=st.lists(st.tuples(runs, st.integers(-1, 4), st.booleans()), min_size=1, max_size=5))
    def sample(self, wants: list[tuple[str, int, bool]]) -> None:
        for run_id, back, is_exact in wants:
            self._sample(run_id, back, is_exact=is_exact)

    @rule(wants=st.lists(st.tuples(runs, st.integers(0, 3), st.booleans()), min_size=1, max_size=5))
    def arrive_and_sample(self, wants: list[tuple[str, int, bool]]) -> None:
        self.arrive(wants[0][0])
        self.sample(wants)

    def _sample(self, run_id: str, back: int, *, is_exact: bool) -> None:
        version = max(0, self.published[run_id] - back)
        gate: VersionGate = Exactly(version) if is_exact else AtLeast(version)
        candidates = [self._candidate(index, run_id) for index in range(2)]
        fitting = satisfying(candidates, gate)
        chosen = choose(fitting)
        if chosen is None:
            assert max(c.newest for c in candidates) < version  # nobody is held at the router whom someone could serve
            return
        replica = self.replicas[int(chosen.url)]
        request = Request(run_id, gate)
        request.task = self.loop.create_task(replica.run(request))
        replica.requests.append(request)
        self.requests.append(request)
        self.settle()

    def _candidate(self, index: int, run_id: str) -> Candidate:
        table = self.replicas[index].table
        load = sum(request.pin is not None for request in self.replicas[index].requests)
        resident = frozenset(table.resident_versions(run_id))
        return Candidate(str(index), load, newest=table.newest_ready(run_id), resident=resident)

    @precondition(lambda self: any(request.pin for request in self.requests))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        pinned = [request for request in self.requests if request.pin]
        pinned[data.draw(st.integers(0, len(pinned) - 1))].release.set()
        self.settle()

    @precondition(lambda self: any(request.pin for request in self.requests))
    @rule(data=st.data())
    def switch(self, data: st.DataObject) -> None:
        """A sequence goes on with a newer version, as soon as there is one."""
        for replica in self.replicas:
            for request in replica.requests:
                pin = request.pin
                if pin is None or pin.policy == BASE:
                    continue
                newer = replica.table.decide(request.run_id, AtLeast(pin.policy.version + 1))
                if isinstance(newer, Serve) and data.draw(st.booleans()):
                    pin.move(newer.policy)
        self.settle()

    @rule(index=which)
    def die(self, index: int) -> None:
        """And start anew, with what the feed has: the newest of every run."""
        for request in self.replicas[index].requests:
            assert request.task is not None
            request.task.cancel()
            request.pin = None
        fresh = self.replicas[index] = Replica()
        for run_id, version in self.published.items():
            if version:
                fresh.table.announce(PolicyId(run_id, version))
        self.settle()

    @rule(index=which)
    def drain(self, index: int) -> None:
        """Everyone who waits goes, and who samples ends normally; another one takes its place."""
        replica = self.replicas[index]
        replica.gate.drain()
        self.settle()
        for request in replica.requests:
            assert request.task is not None
            if not request.task.done():
                assert request.pin is not None
            elif request.error is not None and request.serve is None:
                assert isinstance(request.error, Draining | NotFound)
            request.release.set()
        self.settle()
        assert all(request.task is not None and request.task.done() for request in replica.requests)
        self.die(index)

    @invariant()
    def nobody_is_served_another_version_than_asked_for(self) -> None:
        for request in self.requests:
            if request.serve is not None:
                policy = request.serve.policy
                assert policy == BASE or policy.source == request.run_id
                match request.gate:
                    case Exactly(version):
                        assert policy.version == version
                    case AtLeast(version):
                        assert policy.version >= version
                        assert policy.version <= request.newest_when_served

    @invariant()
    def only_what_nobody_keeps_is_refused(self) -> None:
        for request in self.requests:
            if isinstance(request.error, NotFound):
                assert isinstance(request.gate, Exactly)

    @invariant()
    def pins_are_never_dropped_and_slots_never_shared(self) -> None:
        for replica in self.replicas:
            slots = {entry.slot: policy for policy, entry in replica.table._entries.items() if entry.slot > 0}
            assert len(slots) == sum(entry.slot > 0 for entry in replica.table._entries.values()) <= NUM_SLOTS
            for request in replica.requests:
                if request.pin is not None and request.pin.policy != BASE:
                    assert request.pin.policy in slots.values()

    def teardown(self) -> None:
        """Nothing waits for ever: when all loads and fetches have come to an end, only those wait whose version was
        not published, or never arrived."""
        for replica in self.replicas:
            for _ in range(60):
                for request in replica.requests:
                    request.release.set()
                self._quiesce(replica, rounds=1)
            for request in replica.requests:
                assert request.task is not None
                if not request.task.done():
                    assert request.gate.version > replica.table.newest_ready(request.run_id)
                    request.task.cancel()
        self.settle()
        self.loop.close()


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


async def test_two_who_wait_for_the_same_recall_do_not_wake_each_other_for_ever() -> None:
    table = VersionTable(num_slots=1)
    gate = Gate(table)
    asked: list[PolicyId] = []
    gate.on_recall = asked.append
    for version in (1, 2):
        table.announce(PolicyId("r", version))
        order = table.next_load()
        assert order is not None
        table.mark_ready(order.policy)
    waiting = [asyncio.create_task(gate.admit(Target("r", Exactly(1), 0.2))) for _ in range(5)]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, PolicyNotReady) for outcome in outcomes)
    assert len(asked) == 5


async def test_what_comes_together_with_the_deadline_is_served() -> None:
    table = VersionTable(num_slots=1)
    gate = Gate(table)

    def arrive() -> None:
        table.announce(PolicyId("r", 1))
        order = table.next_load()
        assert order is not None
        table.mark_ready(order.policy)
        gate.notify()

    waiting = asyncio.create_task(gate.admit(Target("r", AtLeast(1), 0.02)))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    loop.call_later(0.03, arrive)
    loop.call_soon(time.sleep, 0.1)  # it is busy: deadline and arrival fall into one turn of it
    assert (await waiting).policy == PolicyId("r", 1)
