"""When what died is started again."""

import pytest

from farstep_infra.launchers.restarts import GiveUp, RestartPolicy, Row, StartAgain

POLICY = RestartPolicy(first_s=0.1, most_s=1.0, well_s=5.0, max_quick_deaths=6)


def steps(lives, *, chance=0.0):
    row = Row()
    for ready_s in lives:
        row = row.after_death(ready_s, POLICY)
        yield row.next_step(POLICY, chance=chance)


def test_quick_deaths_are_followed_by_ever_longer_pauses_and_then_by_none():
    assert list(steps([0.0] * 6)) == [*(StartAgain(s) for s in (0.1, 0.2, 0.4, 0.8, 1.0)), GiveUp()]


def test_a_life_that_went_well_ends_the_row():
    *_, last = steps([0.0] * 5 + [5.0])
    assert last == StartAgain(0.1)
    assert [type(step) for step in steps([5.0] * 50)] == [StartAgain] * 50


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 0.4), (0.5, 0.3), (1.0, 0.2)])
def test_chance_takes_up_to_half_of_a_pause(chance, pause_s):
    *_, last = steps([0.0] * 3, chance=chance)
    assert last == StartAgain(pytest.approx(pause_s))
