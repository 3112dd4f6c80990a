"""The state machine of policies, by example and by random walks."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from farstep_sampler.version_table import VersionTable
from farstep_sampler.versions import (
    BASE,
    AtLeast,
    Exactly,
    Impossible,
    Load,
    PolicyId,
    Serve,
    Wait,
)


def serve_up_to(table: VersionTable, run_id: str, *versions: int) -> None:
    for version in versions:
        policy = PolicyId(run_id, version)
        assert table.announce(policy)
        order = table.next_load()
        assert order is not None
        assert order.policy == policy
        table.mark_ready(policy)


def test_without_a_policy_the_base_model_serves_version_zero() -> None:
    table = VersionTable(num_slots=2)
    assert table.decide("", AtLeast(0)) == Serve(BASE, 0)
    assert table.decide("never-published", AtLeast(0)) == Serve(BASE, 0)
    assert table.decide("never-published", Exactly(0)) == Serve(BASE, 0)
    assert table.decide("never-published", AtLeast(1)) == Wait(0)
    assert table.decide("never-published", Exactly(1)) == Wait(0)


def test_a_policy_is_served_only_once_it_is_ready() -> None:
    table = VersionTable(num_slots=2)
    assert table.announce(PolicyId("r", 1))
    assert table.decide("r", AtLeast(1)) == Wait(0)
    order = table.next_load()
    assert order is not None
    assert table.decide("r", AtLeast(1)) == Wait(0)
    assert table.decide("r", AtLeast(0)) == Serve(BASE, 0)
    table.mark_ready(order.policy)
    assert table.decide("r", AtLeast(0)) == Serve(PolicyId("r", 1), order.slot)
    assert table.decide("r", Exactly(1)) == Serve(PolicyId("r", 1), order.slot)


def test_the_newest_serves_and_old_ones_stay_for_exact_pins() -> None:
    table = VersionTable(num_slots=3)
    serve_up_to(table, "r", 1, 2, 3)
    decision = table.decide("r", AtLeast(1))
    assert isinstance(decision, Serve)
    assert decision.policy.version == 3
    exact = table.decide("r", Exactly(1))
    assert isinstance(exact, Serve)
    assert exact.policy.version == 1
    assert table.resident_versions("r") == [1, 2, 3]


def test_the_least_recently_used_old_version_leaves() -> None:
    table = VersionTable(num_slots=2)
    serve_up_to(table, "r", 1, 2)
    table.announce(PolicyId("r", 3))
    order = table.next_load()
    assert order is not None
    assert order.retired == PolicyId("r", 1)
    assert table.decide("r", Exactly(1)) == Impossible(2)


def test_a_passed_over_version_never_comes() -> None:
    table = VersionTable(num_slots=2)
    serve_up_to(table, "r", 5)
    assert table.decide("r", Exactly(4)) == Impossible(5)
    assert not table.announce(PolicyId("r", 4))
    assert table.decide("r", Exactly(6)) == Wait(5)


def test_pins_keep_a_policy_and_make_the_next_wait_for_a_slot() -> None:
    table = VersionTable(num_slots=1)
    serve_up_to(table, "r", 1)
    table.pin(PolicyId("r", 1))
    table.announce(PolicyId("r", 2))
    assert table.next_load() is None
    assert table.awaits_slot
    table.unpin(PolicyId("r", 1))
    assert table.next_load() == Load(PolicyId("r", 2), 1, PolicyId("r", 1))


def test_another_runs_old_version_leaves_before_a_newest_one() -> None:
    table = VersionTable(num_slots=3)
    serve_up_to(table, "a", 1)
    serve_up_to(table, "b", 1, 2)
    table.announce(PolicyId("c", 1))
    order = table.next_load()
    assert order is not None
    assert order.retired == PolicyId("b", 1)


def test_a_retired_newest_can_be_recalled() -> None:
    table = VersionTable(num_slots=1)
    serve_up_to(table, "a", 1)
    serve_up_to(table, "b", 1)
    assert table.decide("a", AtLeast(0)) == Wait(1, recall=PolicyId("a", 1))
    assert table.decide("a", Exactly(1)) == Wait(1, recall=PolicyId("a", 1))
    assert table.decide("a", AtLeast(2)) == Wait(1)
    serve_up_to(table, "a", 1)
    assert isinstance(table.decide("a", AtLeast(1)), Serve)


def test_a_failed_load_frees_its_slot_and_may_be_tried_again() -> None:
    table = VersionTable(num_slots=1)
    serve_up_to(table, "r", 1)
    table.announce(PolicyId("r", 2))
    assert table.next_load() is not None
    table.mark_failed(PolicyId("r", 2))
    assert table.newest_seen("r") == 1
    assert table.decide("r", AtLeast(2)) == Wait(1)
    serve_up_to(table, "r", 2)


class RandomWalk(RuleBasedStateMachine):
    """Announces, loads, failures, pins and releases in any order."""

    runs = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.table = VersionTable(num_slots=3)
        self.loading: dict[PolicyId, int] = {}
        self.pinned: list[Serve] = []
        self.published: dict[str, int] = {}

    @rule(run_id=runs, skip=st.integers(1, 2))
    def publish(self, run_id: str, skip: int) -> None:
        version = self.published.get(run_id, 0) + skip
        assert self.table.announce(PolicyId(run_id, version))
        self.published[run_id] = version

    @rule()
    def load(self) -> None:
        order = self.table.next_load()
        if order is not None:
            assert order.slot not in self.loading.values()
            assert order.slot not in [serve.slot for serve in self.pinned]
            self.loading[order.policy] = order.slot

    @precondition(lambda self: self.loading)
    @rule(is_good=st.booleans())
    def finish_load(self, is_good: bool) -> None:
        policy = next(iter(self.loading))
        slot = self.loading.pop(policy)
        if is_good:
            self.table.mark_ready(policy)
            assert self.table.ready(policy) == Serve(policy, slot)
        else:
            self.table.mark_failed(policy)

    @rule(run_id=runs, version=st.integers(0, 6), is_exact=st.booleans())
    def request(self, run_id: str, version: int, is_exact: bool) -> None:
        gate = Exactly(version) if is_exact else AtLeast(version)
        match self.table.decide(run_id, gate):
            case Serve(policy, slot):
                assert policy.version == version if is_exact else policy.version >= version
                assert policy == BASE or policy.source == run_id
                self.table.pin(policy)
                self.pinned.append(Serve(policy, slot))
            case Wait(recall=PolicyId() as recall):
                assert self.table.announce(recall)
            case Impossible():
                assert is_exact
                assert version < self.published[run_id]

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        serve = self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1)))
        self.table.unpin(serve.policy)

    @invariant()
    def pinned_policies_keep_their_slot(self) -> None:
        for serve in self.pinned:
            if serve.policy != BASE:
                assert self.table.ready(serve.policy) == serve

    @invariant()
    def no_more_are_resident_than_there_are_slots(self) -> None:
        resident = [PolicyId(run, v) for run in "abc" for v in self.table.resident_versions(run)]
        slots = [serve.slot for policy in resident if (serve := self.table.ready(policy))]
        assert len(set(slots)) == len(slots) <= 3
        assert not set(slots) & set(self.loading.values())


TestRandomWalk = RandomWalk.TestCase
TestRandomWalk.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
