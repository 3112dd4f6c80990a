"""The table of policies, by example; random walks are in `test_gate`."""

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
    assert table.decide("r", Exactly(1)) == Wait(2, recall=PolicyId("r", 1))


def test_a_passed_over_version_is_fetched_until_nobody_keeps_it() -> None:
    table = VersionTable(num_slots=3)
    serve_up_to(table, "r", 3, 5)
    assert table.decide("r", Exactly(4)) == Wait(5, recall=PolicyId("r", 4))
    assert not table.announce(PolicyId("r", 4))
    table.mark_lost(PolicyId("r", 4))
    assert table.decide("r", Exactly(4)) == Impossible(5, (3, 5))
    assert table.decide("r", Exactly(6)) == Wait(5)


def test_a_version_that_was_fetched_back_is_served_and_the_newest_still_answers() -> None:
    table = VersionTable(num_slots=2)
    serve_up_to(table, "r", 1, 2, 3)
    assert table.readmit(PolicyId("r", 1))
    order = table.next_load()
    assert order is not None
    assert order.retired == PolicyId("r", 2)
    table.mark_ready(order.policy)
    assert table.decide("r", Exactly(1)) == Serve(PolicyId("r", 1), order.slot)
    newest = table.decide("r", AtLeast(0))
    assert isinstance(newest, Serve)
    assert newest.policy.version == 3
    assert not table.readmit(PolicyId("r", 1))


def test_without_the_newest_an_older_version_answers_only_once_the_newest_is_lost() -> None:
    table = VersionTable(num_slots=1)
    serve_up_to(table, "r", 1, 2)
    assert table.readmit(PolicyId("r", 1))
    order = table.next_load()
    assert order is not None
    table.mark_ready(order.policy)
    assert table.decide("r", AtLeast(1)) == Wait(2, recall=PolicyId("r", 2))
    table.mark_lost(PolicyId("r", 2))
    assert table.decide("r", AtLeast(1)) == Serve(PolicyId("r", 1), 1)
    assert table.decide("r", AtLeast(2)) == Wait(2)


def test_what_was_fetched_back_and_is_no_good_is_lost() -> None:
    table = VersionTable(num_slots=2)
    serve_up_to(table, "r", 1, 2, 3)
    table.readmit(PolicyId("r", 1))
    assert table.next_load() is not None
    table.mark_failed(PolicyId("r", 1))
    assert table.decide("r", Exactly(1)) == Impossible(3, (3,))


def test_a_busy_run_keeps_its_last_versions_and_pushes_out_nobody() -> None:
    table = VersionTable(num_slots=6, per_run=3)
    serve_up_to(table, "quiet", 1, 2)
    serve_up_to(table, "busy", *range(1, 20))
    assert table.resident_versions("busy") == [17, 18, 19]
    assert table.resident_versions("quiet") == [1, 2]
    crowded = VersionTable(num_slots=3, per_run=3)
    serve_up_to(crowded, "quiet", 1)
    serve_up_to(crowded, "busy", *range(1, 20))
    assert crowded.resident_versions("quiet") == [1]


def test_a_run_may_hold_more_than_its_share_while_it_is_in_use() -> None:
    table = VersionTable(num_slots=4, per_run=1)
    serve_up_to(table, "r", 1)
    table.pin(PolicyId("r", 1))
    serve_up_to(table, "r", 2)
    assert table.resident_versions("r") == [1, 2]
    table.unpin(PolicyId("r", 1))
    serve_up_to(table, "r", 3)
    assert table.resident_versions("r") == [2, 3]


def test_endless_traffic_does_not_keep_a_new_version_out() -> None:
    """With one slot and somebody always on version 1, the next request for it waits until version 2 is there."""
    table = VersionTable(num_slots=1)
    serve_up_to(table, "r", 1)
    table.pin(PolicyId("r", 1))
    table.announce(PolicyId("r", 2))
    assert table.next_load() is None
    assert table.decide("r", AtLeast(0)) == Wait(1)
    assert table.decide("r", Exactly(1)) == Wait(1)
    table.unpin(PolicyId("r", 1))
    assert table.next_load() == Load(PolicyId("r", 2), 1, PolicyId("r", 1))


def test_a_policy_that_need_not_leave_after_all_stays() -> None:
    table = VersionTable(num_slots=2)
    serve_up_to(table, "r", 1)
    serve_up_to(table, "s", 1)
    for run_id in "rs":
        table.pin(PolicyId(run_id, 1))
    table.announce(PolicyId("t", 1))
    assert table.next_load() is None
    revision = table.revision
    assert table.withdraw(PolicyId("t", 1))
    assert table.next_load() is None
    assert table.revision > revision
    assert all(isinstance(table.decide(run_id, AtLeast(1)), Serve) for run_id in "rs")


def test_another_history_takes_the_place_of_the_one_before() -> None:
    """A trainer that lost its store numbers from 1 again: its version 1 must not hide behind an old version 7."""
    table = VersionTable(num_slots=4)
    old = PolicyId("r", 7, "old")
    table.announce(old)
    assert table.next_load() is not None
    table.mark_ready(old)
    table.pin(old)
    new = PolicyId("r", 1, "new")
    assert table.announce(new)
    assert table.decide("r", AtLeast(7)) == Wait(0)
    order = table.next_load()
    assert order is not None
    table.mark_ready(new)
    assert table.decide("r", AtLeast(0)) == Serve(new, order.slot)
    assert table.decide("r", Exactly(7)) == Wait(1)
    assert not table.readmit(old)
    table.unpin(old)
    assert table.resident_versions("r") == [1]


def test_a_late_load_of_a_history_that_is_over_is_not_served() -> None:
    table = VersionTable(num_slots=2)
    old, new = PolicyId("r", 7, "old"), PolicyId("r", 1, "new")
    table.announce(old)
    assert table.next_load() is not None
    table.announce(new)
    table.mark_ready(old)
    assert (table.newest_ready("r"), table.resident_versions("r")) == (0, [])
    order = table.next_load()
    assert order is not None
    table.mark_failed(new)
    assert table.newest_seen("r") == 0


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
