"""When a run ends, how long it is, and how far along: pure decisions."""

import pytest

from farstep.trainers import DataError
from farstep.trainers.exits import EarlyStopping, Limits
from farstep.trainers.horizon import Horizon, accumulated, chunks, num_steps
from farstep.trainers.progress import Pace, sample_line
from farstep.trainers.ready import PreparedBatches, prepared
from farstep.trainers.step import Position


def test_each_limit_has_its_reason(tmp_path):
    switch = tmp_path / "stop"
    limits = Limits(max_steps=9, exit_step=7, exit_steps_this_run=3, kill_switch=str(switch))
    assert limits.reached(step=2, steps_this_run=2) is None
    assert "exit_iteration_this_run (3)" in limits.reached(step=5, steps_this_run=3).reason
    assert "exit_iteration (7)" in limits.reached(step=7, steps_this_run=1).reason
    done = limits.reached(step=9, steps_this_run=1)
    assert ("max_steps (9)" in done.reason, done.is_early) == (True, False)
    switch.touch()
    killed = limits.reached(step=0, steps_this_run=0)
    assert ("remove it to go on" in killed.reason, killed.is_cancelled) == (True, True)


def looked(stopping, values):
    return [stopping.look({"eval/loss": value}) for value in values]


def test_patience_is_over_evaluations_that_do_not_get_better():
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    exits = looked(stopping, [1.0, 0.95, 0.8, 0.79, 0.9])
    assert [bool(each) for each in exits] == [False, False, False, False, True]
    assert stopping.look({"other": 0.0}) is None
    again = EarlyStopping(patience=2, min_delta=0.1)
    looked(again, [1.0, 0.95])
    resumed = EarlyStopping(patience=2, min_delta=0.1)
    resumed.load(again.state())
    assert looked(resumed, [0.99])[0] is not None


def test_a_threshold_ends_at_once():
    best = EarlyStopping("eval/accuracy", mode="max", threshold=0.9)
    assert best.look({"eval/accuracy": 0.8}) is None
    assert "as good as wanted" in best.look({"eval/accuracy": 0.9}).reason


@pytest.mark.parametrize(
    ("num_rows", "size", "group", "sizes"),
    [(7, 3, 1, [3, 3, 1]), (6, None, 1, [6]), (8, 3, 2, [2, 2, 2, 2]), (8, 5, 2, [4, 4]), (4, 1, 2, [2, 2])],
)
def test_chunks_never_end_inside_a_group(num_rows, size, group, sizes):
    parts = chunks(list(range(num_rows)), size, rows_per_group=group)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == list(range(num_rows))
    for passes, steps in ((None, 1), (1, len(sizes)), (2, -(-len(sizes) // 2))):
        assert len(accumulated(parts, passes)) == steps
        assert num_steps(num_rows, mini_bs=size, rows_per_group=group, accumulation=passes) == steps


def test_an_odd_number_of_rows_makes_no_pairs():
    with pytest.raises(DataError, match="batch: 3 rows are not whole groups of 2"):
        chunks([1, 2, 3], 2, rows_per_group=2)
    with pytest.raises(DataError, match="no rows"):
        chunks([], 2)


def test_max_steps_wins_over_epochs():
    assert Horizon.of(steps_per_epoch=4, epochs=3, max_steps=None) == Horizon(12, 3)
    assert Horizon.of(steps_per_epoch=4, epochs=3, max_steps=5) == Horizon(5, 2)
    assert Horizon.of(steps_per_epoch=4, epochs=1, max_steps=12) == Horizon(12, 3)


def test_the_estimate_is_by_the_median_of_the_last_steps():
    now = 0.0
    pace = Pace(10, clock=lambda: now)
    for took in (2.0, 2.0, 60.0):
        now += took
        pace.step()
    assert pace.eta_s(3) == 14.0
    now += 100
    pace.pause()
    now += 2
    assert pace.step() == 2.0
    assert pace.eta_s(10) == 0.0


def test_speed_is_over_several_steps_since_results_may_come_at_once():
    pace = Pace(10)
    assert pace.speed(2.0, 100.0, 4.0) == (50.0, 2.0)
    assert pace.speed(1e-9, 100.0, 4.0) == pytest.approx((100.0, 4.0))
    for _ in range(8):
        last = pace.speed(0.5, 100.0, 4.0)
    assert last == pytest.approx((200.0, 8.0))  # what is long past counts no more


def test_a_sample_is_one_line_with_the_end_of_its_prompt():
    assert sample_line({"prompt": "a\nb\n", "completion": "c", "reward": 0.5}) == "  a ⏎ b → c  [0.5]"
    line = sample_line({"prompt": "x" * 5000 + "the question", "completion": "the answer" + "y" * 5000})
    assert "the question → the answer" in line
    assert len(line) < 420


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_are_begun_before_they_are_asked_for(ahead):
    log = []

    def begin(batch):
        log.append(f"begin {batch}")
        return lambda: log.append(f"end {batch}") or batch

    assert list(prepared([0, 1, 2], begin, ahead=ahead)) == [0, 1, 2]
    assert log.index("end 0") == min(ahead + 1, 3)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_of_the_next_epoch_are_begun_in_this_one(ahead):
    """As far ahead as everywhere, and no further: without lookahead an epoch ends before the next one begins."""
    log = []

    def begin(batch):
        log.append(batch)
        return lambda: batch

    places = [(Position(epoch, index), 2 * epoch + index) for epoch in range(3) for index in range(2)]
    batches = PreparedBatches(places, begin, ahead=ahead)
    for epoch in range(3):
        assert batches.place == Position(epoch, 0)
        assert list(batches.of_epoch(epoch)) == [2 * epoch, 2 * epoch + 1]
        assert list(batches.of_epoch(epoch)) == []
        assert len(log) == min(2 * (epoch + 1) + ahead, 6)
    assert batches.place is None
    assert log == sorted(log)
