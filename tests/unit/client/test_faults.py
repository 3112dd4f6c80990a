"""What the SDK does when the network, the server or something in between misbehaves."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

import farstep
from farstep import _retry
from farstep_proto import errors
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, Fault
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_training import datum


def test_a_lost_answer_runs_the_operation_once(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault("/forward_backward", drop=True, times=2))
    assert client.forward_backward([datum()]).result(timeout=5).loss == 2.5
    client.optim_step().result(timeout=5)
    assert [verb for _, _, verb, _ in trainer.executed] == ["forward_backward", "optim_step"]
    assert {seen.query["seq"] for seen in trainer.seen if seen.path.endswith("/forward_backward")} == {"1"}
    assert trainer.count("/forward_backward") == 3


def test_a_lost_answer_of_a_sample(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    waiting = sampling.sample([1])  # so that a poll brings the outcome before the repeated submission does
    sampler.faults.append(Fault("/v1/samples", drop=True))
    assert sampling.sample([1, 2]).result(timeout=5).sequences[0].tokens == [1, 2, 3]
    waiting.result(timeout=5)
    assert len(sampler.requests) == 2


@pytest.mark.parametrize("status", [502, 503, 504])
def test_something_in_between_is_unwell_for_a_moment(
    client: farstep.TrainingClient, trainer: Trainer, status: int
) -> None:
    trainer.faults.append(Fault("/forward", status=status, times=3))
    assert client.forward([datum()]).result(timeout=5).loss == 2.5


def test_too_many_requests_waits_as_long_as_it_is_told(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault("/forward", error=errors.TooManyRequests("full", retry_after_s=0.4)))
    began_at = time.monotonic()
    assert client.forward([datum()]).result(timeout=5).loss == 2.5
    assert time.monotonic() - began_at >= 0.4


def test_too_many_requests_for_too_long(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault("/forward", error=errors.TooManyRequests("full", retry_after_s=9.0), times=99))
    with pytest.raises(farstep.RateLimitError, match="full") as caught:
        client.forward([datum()])
    assert caught.value.retry_after_s == 9.0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidInput("wrong", field="data[0]"), farstep.InvalidInputError),
        (errors.Unauthenticated("wrong"), farstep.AuthenticationError),
        (errors.Forbidden("wrong"), farstep.PermissionDeniedError),
        (errors.NotFound("wrong"), farstep.NotFoundError),
        (errors.Conflict("wrong"), farstep.ConflictError),
        (errors.PayloadTooLarge("wrong"), farstep.PayloadTooLargeError),
        (errors.PolicyNotReady("wrong", wanted_version=3, newest_version=2), farstep.PolicyNotReadyError),
        (errors.Internal("wrong"), farstep.ServerError),
    ],
)
def test_a_refusal_is_raised_at_the_call_and_leaves_no_gap(
    client: farstep.TrainingClient, trainer: Trainer, error: errors.ApiError, kind: type[farstep.FarstepError]
) -> None:
    trainer.faults.append(Fault("/forward", error=error))
    with pytest.raises(kind, match="wrong") as caught:
        client.forward([datum()])
    assert caught.value.field == error.field
    assert client.forward([datum()]).result(timeout=5).loss == 2.5
    assert [(seq, verb) for _, seq, verb, _ in trainer.executed] == [(1, "skip"), (2, "forward")]


def test_a_refusal_by_something_else_than_a_farstep_server(
    client: farstep.TrainingClient, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.faults.append(Fault("/forward", status=418))
    with pytest.raises(farstep.ServerError, match="418"):
        client.forward([datum()])
    trainer.faults.append(Fault("/forward", status=200))  # a login page, for a moment
    client.forward([datum()]).result(timeout=5)
    trainer.faults.append(Fault("/forward", status=200, times=10_000))
    monkeypatch.setattr(_retry, "REQUEST_RETRY", _retry.RetryPolicy(budget_s=0.1, first_delay_s=0.02))
    with pytest.raises(farstep.ServerError, match="is it a Farstep server"):
        client.forward([datum()])


def test_a_lost_submission_is_given_up_before_the_next(
    client: farstep.TrainingClient, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_retry, "REQUEST_RETRY", _retry.RetryPolicy(budget_s=0.1, first_delay_s=0.02))
    trainer.faults += [Fault("/forward", status=503, times=99), Fault("/skip", status=503, times=99)]
    for _ in range(2):  # nothing goes behind what could not be given up
        with pytest.raises(farstep.TransportError, match=r"503.*unfetched\(\) has it"):
            client.forward([datum()])
    assert trainer.executed == []
    trainer.faults.clear()
    client.forward([datum()]).result(timeout=5)
    assert [(seq, verb) for _, seq, verb, _ in trainer.executed] == [(1, "skip"), (2, "skip"), (3, "forward")]


def test_a_server_that_shuts_down(
    client: farstep.TrainingClient, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.fail_next = errors.Draining("the server is shutting down")
    with pytest.raises(farstep.ServerShutdownError):
        client.forward([datum()]).result(timeout=5)
    monkeypatch.setattr(_retry, "REQUEST_RETRY", _retry.RetryPolicy(budget_s=0.1, first_delay_s=0.02))
    trainer.host.call(trainer.table.drain)
    with pytest.raises(farstep.ServerShutdownError, match="shutting down"):
        client.forward([datum()])


def test_a_restarted_server_has_forgotten(client: farstep.TrainingClient, trainer: Trainer) -> None:
    client.forward([datum()]).result()
    trainer.hold()
    futures = [client.forward([datum()]) for _ in range(3)]
    trainer.restart()
    for future in futures:
        with pytest.raises(farstep.UnknownRequestError, match="no longer knows"):
            future.result(timeout=5)


def test_an_idle_poll_asks_whether_operations_are_still_known(
    client: farstep.TrainingClient, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farstep._poller.WAIT_S", 0.3)
    trainer.hold()
    future = client.forward([datum()])
    with pytest.raises(farstep.ResultTimeout):
        future.result(timeout=0.8)  # still known
    trainer.restart()
    with pytest.raises(farstep.UnknownRequestError):
        future.result(timeout=5)


def test_polls_that_fail_for_a_while_fail_no_future(
    trainer: Trainer, sampler: Sampler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = _retry.RetryPolicy(budget_s=5.0, warn_after_s=0.1, first_delay_s=0.02, max_delay_s=0.05)
    monkeypatch.setattr(_retry, "POLL_RETRY", noisy)
    trainer.faults.append(Fault(":poll", drop=True, times=12))
    with (
        farstep.ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url, api_key=KEY) as service,
        service.create_lora_training_client(BASE_MODEL) as client,
    ):
        assert client.forward([datum()]).result(timeout=5).loss == 2.5
    warnings = [record.message for record in caplog.records if trainer.url in record.message]
    assert len(warnings) == 2
    assert "no success for" in warnings[0]
    assert "RemoteProtocolError" in warnings[0]
    assert "works again" in warnings[1]


def test_polls_that_never_work_end_in_an_error(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault(":poll", status=502, times=10_000))
    future = client.forward([datum()])
    with pytest.raises(farstep.TransportError, match="502"):
        future.result(timeout=10)
    trainer.faults.clear()
    assert client.forward([datum()]).result(timeout=5).loss == 2.5


def test_a_poll_that_is_refused_ends_in_that_error(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault(":poll", error=errors.Unauthenticated("the key was withdrawn")))
    with pytest.raises(farstep.AuthenticationError, match="withdrawn"):
        client.forward([datum()]).result(timeout=5)


def test_an_outcome_is_acknowledged_soon(client: farstep.TrainingClient, trainer: Trainer) -> None:
    client.forward([datum()]).result()
    deadline = time.monotonic() + 2
    while trainer.host.call(lambda: trainer.table.num_unclaimed) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert trainer.host.call(lambda: trainer.table.num_unclaimed) == 0


def test_a_wrong_key_is_never_in_the_error(trainer: Trainer, sampler: Sampler) -> None:
    secret = "fsk-wrong-and-secret"
    with farstep.ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url, api_key=secret) as client:
        with pytest.raises(farstep.AuthenticationError, match="api_key") as caught:
            client.create_lora_training_client(BASE_MODEL)
        error: BaseException | None = caught.value
        while error is not None:
            assert secret not in f"{error} {error!r} {error.__dict__}"
            assert type(error).__module__ != "httpx"
            error = error.__cause__ or error.__context__
        assert secret not in repr(client)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "CONNECT_BUDGET_S", 0.1)
    began_at = time.monotonic()
    with pytest.raises(farstep.TransportError, match="farstep up") as caught:
        farstep.ServiceClient(base_url="http://127.0.0.1:9", api_key="fsk-x")
    assert time.monotonic() - began_at < 3
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    client = farstep.ServiceClient.local(trainer_url="http://127.0.0.1:9", sampler_url="http://127.0.0.1:9")
    with client, pytest.raises(farstep.TransportError):
        client.create_lora_training_client(BASE_MODEL)


def test_ensure_ready_says_why_not(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault("/health", status=503, times=1000))
    with pytest.raises(farstep.ResultTimeout, match="503"):
        client.ensure_ready(timeout=5.0)
    trainer.faults.clear()
    client.ensure_ready(timeout=30.0)


def test_an_interrupted_submission_leaves_no_gap(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault("/forward", error=errors.TooManyRequests("full", retry_after_s=1.0), times=1))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        client.forward([datum()])
    client.forward([datum()]).result(timeout=5)
    assert [(seq, verb) for _, seq, verb, _ in trainer.executed] == [(1, "skip"), (2, "forward")]


def test_retries_leave_the_random_numbers_of_the_program_alone() -> None:
    before = random.getstate()
    with _retry.Backoff(_retry.REQUEST_RETRY, what="a test") as backoff:
        backoff.delay_s(farstep.TransportError("gone"))
    assert random.getstate() == before
