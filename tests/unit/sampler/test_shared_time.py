"""Time that is shared: every job gets its part, and the parts add up to what there was."""

import pytest

from farstep_sampler.engines.shared_time import SharedTime


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_shares_add_up_to_the_time_when_anything_ran() -> None:
    clock = Clock()
    shared = SharedTime(clock=clock)
    clock.now += 100  # nobody's
    with shared.shared_by(1) as first:
        clock.now += 4
        with shared.shared_by(3) as second:
            clock.now += 8
            second_s = second()
        clock.now += 1
        first_s = first()
    clock.now += 100
    assert second_s == pytest.approx(6)
    assert first_s == pytest.approx(4 + 2 + 1)
    with shared.shared_by(2) as third:
        clock.now += 3
        assert third() == pytest.approx(3)
