"""A run that is gone on with by another client: gaps, results that nobody saw, two at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import farstep
from farstep_proto import errors
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, Fault
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_awake import until
from tests.unit.client.test_training import datum


@pytest.fixture
def service(trainer: Trainer, sampler: Sampler) -> Iterator[farstep.ServiceClient]:
    """Another process: its connection is its own, because its key has another place."""
    farstep._connection._open.clear()
    with farstep.ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url, api_key=KEY) as client:
        yield client


def test_results_that_nobody_saw(
    client: farstep.TrainingClient, service: farstep.ServiceClient, trainer: Trainer
) -> None:
    client.forward([datum()]).result(timeout=5)
    until(lambda: not trainer.table.num_unclaimed)
    trainer.faults.append(Fault(":poll", error=errors.Unauthenticated("it died"), times=1))
    with pytest.raises(farstep.AuthenticationError):
        client.forward_backward([datum()]).result(timeout=5)
    trainer.hold()
    trainer.faults.append(Fault(":poll", error=errors.Unauthenticated("it died"), times=1))
    with pytest.raises(farstep.AuthenticationError):
        client.optim_step().result(timeout=5)
    with service.resume_run(client.run_id) as resumed:
        done, pending = resumed.unfetched()
        assert [(each.verb, each.seq) for each in (done, pending)] == [("forward_backward", 2), ("optim_step", 3)]
        assert done.result(timeout=5).loss == 2.5
        assert not pending.done()
        trainer.release()
        assert pending.result(timeout=5).metrics["step"] == 1
        assert resumed.step == 1
        until(lambda: not resumed.unfetched())
        again = resumed.future(done.operation_id)
        assert again.result(timeout=5).loss == 2.5
        assert resumed.forward([datum()]).seq == 4
    assert [seq for _, seq, _, _ in trainer.executed] == [1, 2, 3, 4]


def test_many_results_that_nobody_saw(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.hold()
    futures = [client.forward([datum()]) for _ in range(5)]
    found = client.unfetched()
    assert [each.operation_id for each in found] == [each.operation_id for each in futures]
    trainer.release()
    assert [each.result(timeout=5).loss for each in found] == [2.5] * 5
    assert [each.result(timeout=5).loss for each in futures] == [2.5] * 5


def test_a_future_by_its_id(client: farstep.TrainingClient) -> None:
    with pytest.raises(farstep.UnknownRequestError, match="no operation"):
        client.future(f"{client.run_id}:7")
    with pytest.raises(farstep.InvalidInputError, match="operation_id"):
        client.future("run_other:1")


def test_what_a_dead_process_never_submitted_blocks_nobody(
    client: farstep.TrainingClient, service: farstep.ServiceClient, trainer: Trainer
) -> None:
    client._submitter.take()
    client.forward([datum()])
    client._submitter.take(2)
    with service.resume_run(client.run_id) as resumed:
        (left,) = resumed.unfetched()
        assert left.result(timeout=5).loss == 2.5
        assert resumed.forward([datum()]).result(timeout=5).loss == 2.5
    with service.resume_run(client.run_id) as resumed:
        assert resumed.forward([datum()]).result(timeout=5).loss == 2.5
    assert [(seq, verb) for _, seq, verb, _ in trainer.executed] == [
        (1, "skip"), (2, "forward"), (3, "forward"), (4, "forward"),
    ]  # fmt: skip


def test_two_clients_at_once(client: farstep.TrainingClient, service: farstep.ServiceClient, trainer: Trainer) -> None:
    with service.resume_run(client.run_id) as other:
        client.forward([datum()])
        with pytest.raises(farstep.ConflictError, match=r"another process.*resume_run\('run_.*'\)"):
            other.optim_step()
        with service.resume_run(client.run_id) as again:
            assert again.forward([datum()]).result(timeout=5).loss == 2.5
    assert [(seq, verb) for _, seq, verb, _ in trainer.executed] == [(1, "forward"), (2, "forward")]


def test_parts_that_a_server_lost_are_sent_again(trainer: Trainer, sampler: Sampler) -> None:
    trainer.max_request_bytes = 200
    trainer.loses_parts = True
    with (
        farstep.ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url, api_key=KEY) as service,
        service.create_lora_training_client(BASE_MODEL) as client,
    ):
        assert client.forward([datum() for _ in range(4)]).result(timeout=5).loss == 2.5
    (executed,) = trainer.executed
    assert sum(len(message.data) for message in executed[3]) == 4


def test_samples_that_a_sampler_lost_are_submitted_again(sampling: farstep.SamplingClient, sampler: Sampler) -> None:
    sampler.is_held = True
    futures = [sampling.sample([1, 2]) for _ in range(3)]
    until(lambda: sampler.count("/v1/samples") == 3)
    sampler.restart()
    assert [each.result(timeout=5).sequences[0].tokens for each in futures] == [[1, 2, 3]] * 3


def test_samples_that_a_sampler_loses_every_time_fail_in_the_end(
    sampling: farstep.SamplingClient, sampler: Sampler
) -> None:
    sampler.fails_with = errors.Draining("down again")
    with pytest.raises(farstep.ServerShutdownError, match="down again"):
        sampling.sample([1, 2]).result(timeout=20)


def test_a_full_disk_is_a_refusal_of_its_own(client: farstep.TrainingClient, trainer: Trainer) -> None:
    trainer.faults.append(Fault("/v1/runs/", error=errors.StorageFull("no room"), times=4))
    for _ in range(2):
        with pytest.raises(farstep.StorageFullError, match=r"no room.*make room"):
            client.forward([datum()])
    assert client.forward([datum()]).result(timeout=5).loss == 2.5
    assert [verb for _, _, verb, _ in trainer.executed] == ["skip", "skip", "forward"]
