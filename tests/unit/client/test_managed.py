"""What only a control plane makes possible: a server that moves, a run that sleeps, a session that lives."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator

import pytest

import farstep
from farstep import _keep_alive, _whereabouts
from farstep_proto import errors
from tests.unit.client.fake_control import ControlPlane
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, Fault, Host
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_awake import until, wake
from tests.unit.client.test_training import datum


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_whereabouts, "ASK_AFTER_S", 0.1)
    monkeypatch.setattr(_whereabouts, "ASK_EVERY_S", 0.1)
    monkeypatch.setattr(_keep_alive, "BEAT_S", 0.05)


@pytest.fixture
def managed(service: farstep.ServiceClient) -> Iterator[farstep.TrainingClient]:
    with service.create_lora_training_client(BASE_MODEL) as client:
        yield client


@pytest.fixture
def elsewhere(host: Host, trainer: Trainer) -> Trainer:
    """The same trainer under another address, as one that was restored there."""
    other = Trainer(host)
    other.runs, other.publish_to = trainer.runs, trainer.publish_to
    other.app, other.table = trainer.app, trainer.table
    return other


def gone(trainer: Trainer) -> None:
    trainer.faults.append(Fault("/", status=502, times=10_000))


def test_a_trainer_that_moves_takes_its_futures_along(
    managed: farstep.TrainingClient, trainer: Trainer, elsewhere: Trainer, control: ControlPlane
) -> None:
    managed.forward([datum()]).result(timeout=5)
    trainer.hold()
    outstanding = managed.forward([datum()])
    gone(trainer)
    control.runs[managed.run_id].trainer_url = elsewhere.url
    later = managed.forward([datum()])
    trainer.release()
    assert outstanding.result(timeout=5).loss == 2.5
    assert later.result(timeout=5).loss == 2.5
    assert elsewhere.url in repr(managed)
    assert [seq for _, seq, _, _ in trainer.executed] == [1, 2, 3]


def test_a_sampler_that_moves(managed: farstep.TrainingClient, sampler: Sampler, control: ControlPlane) -> None:
    with managed.save_weights_and_get_sampling_client() as sampling:
        again = pickle.loads(pickle.dumps(sampling))
        other = Sampler(sampler.host)
        other.app = sampler.app
        sampler.faults.append(Fault("/", status=502, times=10_000))
        control.runs[managed.run_id].sampler_url = other.url
        for each in (sampling, again):
            assert each.sample([1, 2]).result(timeout=5).sequences[0].tokens == [1, 2, 3]
            assert each.url == other.url
        again.close()


def test_a_control_plane_that_is_down_changes_nothing(
    managed: farstep.TrainingClient, trainer: Trainer, control: ControlPlane
) -> None:
    control.faults.append(Fault("/v1/runs", status=502, times=10_000))
    trainer.faults.append(Fault("/forward", status=502, times=8))
    assert managed.forward([datum()]).result(timeout=5).loss == 2.5


def test_a_run_that_is_over_is_not_waited_for(
    managed: farstep.TrainingClient, trainer: Trainer, control: ControlPlane
) -> None:
    trainer.hold()
    future = managed.forward([datum()])
    gone(trainer)
    control.fails_with = "the machine burnt"
    wake()  # the parked poll ends
    with pytest.raises(farstep.ProvisioningError, match="the machine burnt"):
        future.result(timeout=5)
    with pytest.raises(farstep.ProvisioningError, match="the machine burnt"):
        managed.forward([datum()])


def test_a_run_that_was_put_to_sleep_wakes_when_it_is_needed(
    managed: farstep.TrainingClient, trainer: Trainer, elsewhere: Trainer, control: ControlPlane
) -> None:
    gone(trainer)
    run = control.runs[managed.run_id]
    run.state, run.trainer_url = "inactive", ""
    control.trainer = elsewhere
    assert managed.forward([datum()]).result(timeout=5).loss == 2.5


def test_resuming_a_run_that_was_put_to_sleep(
    service: farstep.ServiceClient, managed: farstep.TrainingClient, control: ControlPlane
) -> None:
    managed.forward([datum()]).result(timeout=5)
    managed.close()
    control.runs[managed.run_id].state = "inactive"
    with service.resume_run(managed.run_id) as client:
        assert client.forward([datum()]).seq == 2
    control.runs[managed.run_id].state = "deleted"
    with pytest.raises(farstep.NotFoundError, match="deleted"):
        service.resume_run(managed.run_id)


def test_a_session_lives_as_long_as_a_client_of_it_is_open(control: ControlPlane) -> None:
    with farstep.ServiceClient(base_url=control.url, api_key=KEY) as service:
        until(lambda: control.heartbeats)
        client = service.create_lora_training_client(BASE_MODEL)
        sampling = client.save_weights_and_get_sampling_client()
        control.heartbeats.clear()
        until(lambda: control.heartbeats)
        assert control.heartbeats[0] == ("session-1", [client.run_id])
        client.close()
        sampling.close()
    time.sleep(0.3)  # one may have been on its way
    num_heartbeats = len(control.heartbeats)
    time.sleep(0.2)
    assert len(control.heartbeats) == num_heartbeats
    assert control.url not in {url for url, *_ in _keep_alive._alive}, "others may have left sessions of theirs open"


def test_heartbeats_that_fail_are_quiet_and_a_closed_session_is_said_aloud_once(
    service: farstep.ServiceClient, control: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    control.faults.append(Fault("/heartbeat", error=errors.Internal("broken"), times=3))
    until(lambda: control.heartbeats)
    assert not caplog.records
    control.closed_sessions.append("session-1")
    until(lambda: caplog.records)
    time.sleep(0.2)
    (record,) = caplog.records
    assert "session-1 is closed" in record.message


def test_a_session_that_was_taken_for_dead_is_opened_again(
    service: farstep.ServiceClient, control: ControlPlane
) -> None:
    control.closed_sessions.append("session-1")
    with service.create_lora_training_client(BASE_MODEL) as client:
        assert service.session_id == "session-2"
        assert control.sessions[1].reuse_from_session_id == "session-1"
        assert control.runs[client.run_id].session_id == "session-2"
        until(lambda: ("session-2", [client.run_id]) in control.heartbeats)
