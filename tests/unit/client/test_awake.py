"""Time awake: budgets after a sleep, and connections from before one."""

from __future__ import annotations

import time

import pytest

import farstep
from farstep import _awake, _connection, _loop
from farstep._awake import AwakeClock
from farstep._retry import Backoff, RetryPolicy
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_training import datum


class Clocks:
    """One that goes on while the process does not run, or stands still, and the wall clock, which never does."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.wall = 1e9
        self.num_woken = 0
        self.awake = AwakeClock(monotonic=lambda: self.monotonic, wall=lambda: self.wall)
        self.awake.on_wake(self.woken)

    def woken(self) -> None:
        self.num_woken += 1

    def run(self, seconds: float) -> float:
        """Looking every second, as the loop does."""
        for _ in range(int(seconds)):
            self.monotonic += 1.0
            self.wall += 1.0
            self.awake()
        return self.awake()

    def sleep(self, seconds: float, *, stands_still: bool) -> float:
        self.monotonic += 0.0 if stands_still else seconds
        self.wall += seconds
        return self.awake()


@pytest.mark.parametrize("stands_still", [True, False])
def test_time_asleep_is_not_counted(stands_still: bool) -> None:
    clocks = Clocks()
    began = clocks.awake()
    assert clocks.run(20) - began == 20
    assert clocks.sleep(600, stands_still=stands_still) - began <= 20 + _awake.TICK_S
    assert (clocks.num_woken, clocks.awake.num_sleeps) == (1, 1)
    assert clocks.run(10) - began <= 30 + _awake.TICK_S


def test_a_busy_machine_and_a_clock_put_back_are_no_sleep() -> None:
    clocks = Clocks()
    clocks.sleep(_awake.SLEPT_S, stands_still=False)
    clocks.wall -= 3600
    clocks.run(5)
    assert clocks.awake.num_sleeps == 0


def test_the_clock_never_goes_back() -> None:
    clocks = Clocks()
    times = []
    for step in (0.1, 5.0, 600.0, 0.5, 11.5, 12.0):
        clocks.monotonic += step
        times.append(clocks.awake())
    assert times == sorted(times)


def test_a_budget_begins_anew_after_a_sleep() -> None:
    clocks = Clocks()
    backoff = Backoff(RetryPolicy(30.0), what="x", clock=clocks.awake, num_sleeps=lambda: clocks.awake.num_sleeps)
    fault = farstep.TransportError("gone")
    backoff.delay_s(fault)
    clocks.run(29)
    with pytest.raises(farstep.TransportError):
        backoff.delay_s(fault, at_least_s=5.0)
    backoff.delay_s(fault)
    clocks.run(29)
    clocks.sleep(600, stands_still=False)
    backoff.delay_s(fault, at_least_s=5.0)
    clocks.run(20)
    backoff.delay_s(fault, at_least_s=5.0)
    backoff.reset()


def test_who_wakes_trusts_no_connection(client: farstep.TrainingClient, trainer: Trainer) -> None:
    """The parked poll is sent again at once, though nothing told that it would never be answered."""
    trainer.hold()
    future = client.forward([datum()])
    until(lambda: trainer.count(":poll") == 1)
    wake()
    until(lambda: trainer.count(":poll") == 2)
    trainer.release()
    assert future.result(timeout=5).loss == 2.5
    assert trainer.count("/forward") == 1


def wake() -> None:
    """As if the process had slept."""

    async def call() -> None:
        _connection._wake_all()

    _loop.run(call())


def until(is_so) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)
