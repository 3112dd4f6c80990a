"""The parts that decide without a server: backoff, meter, status line."""

from __future__ import annotations

import logging
import threading

import pytest

import farstep
from farstep import _progress, _troubles
from farstep._meter import RunMeter
from farstep._pending import Pending
from farstep._retry import Backoff, RetryPolicy
from farstep_proto.v1 import operations_pb2 as ops
from farstep_proto.v1 import training_pb2
from tests.unit.client.fake_server import Fault
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_awake import until, wake
from tests.unit.client.test_training import datum


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_backoff_grows_warns_once_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    backoff = Backoff(RetryPolicy(60.0, warn_after_s=30.0, first_delay_s=1.0, max_delay_s=8.0), what="x", clock=clock)
    fault = farstep.TransportError("no route")
    delays: list[float] = []

    def fail_for_ever() -> None:
        while True:
            delays.append(backoff.delay_s(fault))
            clock.now += delays[-1]

    with pytest.raises(farstep.TransportError) as caught:
        fail_for_ever()
    assert caught.value is fault
    assert all(0.5 * step <= delay <= step for delay, step in zip(delays, [1, 2, 4, 8, 8], strict=False))
    assert 45 < sum(delays) <= 60
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "no route" in warning


def test_backoff_waits_at_least_as_long_as_it_is_told() -> None:
    backoff = Backoff(RetryPolicy(60.0), what="x", clock=Clock())
    assert backoff.delay_s(farstep.TransportError(""), at_least_s=7.0) == 7.0
    with pytest.raises(farstep.TransportError):
        backoff.delay_s(farstep.TransportError(""), at_least_s=61.0)


def test_the_meter_weighs_losses_by_tokens() -> None:
    clock = Clock()
    meter = RunMeter(step=4, policy_version=2, clock=clock)
    meter.count_pass(1.0, {"a": 1}, num_tokens=30)
    meter.count_pass(2.0, {"a": 2, "tokens:sum": 10}, num_tokens=70)
    clock.now += 2.0
    record = meter.count_step(training_pb2.OptimStepResponse(metrics={"grad_norm": 3, "step": 5}))
    assert record.step == 5
    assert record.metrics == {
        "a": 2,
        "tokens:sum": 10,
        "grad_norm": 3,
        "loss": 1.25,
        "tokens_per_s": 50.0,
        "policy_version": 2.0,
    }
    assert meter.describe() == "step 5, 50 tokens/s"
    meter.count_publication(training_pb2.SaveWeightsResponse(policy_version=1))
    assert meter.policy_version == 2


def test_nothing_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FARSTEP_PROGRESS", "0"), ("CI", "true")):
        _progress.is_shown.cache_clear()
        monkeypatch.delenv("CI", raising=False)
        monkeypatch.delenv("FARSTEP_PROGRESS", raising=False)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        assert _progress.is_shown() is True
        _progress.is_shown.cache_clear()
        monkeypatch.setenv(name, value)
        assert _progress.is_shown() is False
    _progress.is_shown.cache_clear()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "is_shown", lambda: True)
    monkeypatch.setattr(_progress, "QUIET_S", 0.05)
    monkeypatch.setattr(_progress, "TICK_S", 0.05)
    monkeypatch.setattr(_progress, "LOOK_EVERY_S", 0.05)


@pytest.mark.usefixtures("shown")
def test_a_long_wait_says_what_it_waits_for(
    client: farstep.TrainingClient, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def record(self: object, text: str) -> None:
        lines.append(text)

    monkeypatch.setattr("rich.status.Status.update", record)
    trainer.hold()
    future = client.forward([datum()])
    with pytest.raises(farstep.ResultTimeout):
        future.result(timeout=0.4)
    assert any(line.startswith("forward · step 0 · queued behind 3 · ") for line in lines)
    threading.Timer(0.1, trainer.release).start()
    assert future.result(timeout=5).loss == 2.5


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, shown: None, trainer: Trainer) -> list[str]:
    """All that the status line says, and what stays; of this test's server alone, for others may have left clients."""
    said: list[str] = []
    note = _troubles.Troubles.note

    def note_own(self: _troubles.Troubles, row: object, reason: str) -> None:
        if trainer.url in reason:
            note(self, row, reason)

    monkeypatch.setattr(_troubles.Troubles, "note", note_own)
    monkeypatch.setattr(_troubles.troubles, "_rows", {})
    monkeypatch.setattr(_troubles.troubles, "_showing", None)
    monkeypatch.setattr(_progress, "_line_is_taken", threading.Lock())

    def record(self: object, text: str, **options: object) -> None:
        said.append(text)

    monkeypatch.setattr(_troubles, "QUIET_S", 0.05)
    monkeypatch.setattr(_troubles, "TICK_S", 0.02)
    monkeypatch.setattr("rich.status.Status.update", record)
    monkeypatch.setattr("rich.console.Console.print", record)
    return said


def test_a_call_says_what_does_not_answer_and_when_it_works_again(
    client: farstep.TrainingClient, trainer: Trainer, lines: list[str]
) -> None:
    trainer.faults.append(Fault("/forward", status=502, times=8))
    client.forward([datum()])
    until(lambda: any("works again after" in line for line in lines))
    assert any("answered with HTTP 502; trying again for" in line for line in lines)


def test_a_wait_says_what_does_not_answer(client: farstep.TrainingClient, trainer: Trainer, lines: list[str]) -> None:
    trainer.hold()
    future = client.forward([datum()])
    trainer.faults.append(Fault(":poll", status=502, times=8))
    wake()
    threading.Timer(0.5, trainer.release).start()
    assert future.result(timeout=30).loss == 2.5
    assert any(line.startswith("forward · step 0 · http://") and "HTTP 502" in line for line in lines)


def test_a_pending_outcome_reaches_every_watcher_once() -> None:
    pending = Pending()
    called: list[int] = []
    pending.watch(lambda: called.append(1))
    gone = pending.watch(lambda: called.append(2))
    pending.unwatch(gone)
    pending.watch(lambda: 1 / 0)
    pending.watch(lambda: called.append(3))
    pending.set(ops.Operation())
    pending.watch(lambda: called.append(4))
    assert called == [1, 3, 4]
    assert pending.wait(0) is True
