"""Fixtures: fake servers, and SDK clients bound to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import farstep
from farstep import _retry
from tests.unit.client.fake_control import ControlPlane
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL, KEY, Host
from tests.unit.client.fake_trainer import Trainer


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own settings reaches a test; faults are retried fast and given up soon."""
    for name in ("FARSTEP_API_KEY", "FARSTEP_BASE_URL", "FARSTEP_REUSE_FROM_SESSION_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FARSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FARSTEP_PROGRESS", "0")
    quick = _retry.RetryPolicy(budget_s=3.0, first_delay_s=0.02, max_delay_s=0.1)
    monkeypatch.setattr(_retry, "REQUEST_RETRY", quick)
    monkeypatch.setattr(_retry, "POLL_RETRY", _retry.RetryPolicy(budget_s=1.0, first_delay_s=0.02, max_delay_s=0.1))
    monkeypatch.setattr(_retry, "CONNECT_BUDGET_S", 1.0)


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.stop()


@pytest.fixture
def sampler(host: Host) -> Sampler:
    return Sampler(host)


@pytest.fixture
def trainer(host: Host, sampler: Sampler) -> Trainer:
    trainer = Trainer(host)
    trainer.publish_to = sampler
    return trainer


@pytest.fixture
def control(host: Host, trainer: Trainer, sampler: Sampler) -> ControlPlane:
    return ControlPlane(host, trainer, sampler)


@pytest.fixture
def local(trainer: Trainer, sampler: Sampler) -> Iterator[farstep.ServiceClient]:
    with farstep.ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url, api_key=KEY) as client:
        yield client


@pytest.fixture
def service(control: ControlPlane) -> Iterator[farstep.ServiceClient]:
    with farstep.ServiceClient(base_url=control.url, api_key=KEY) as client:
        yield client


@pytest.fixture
def client(local: farstep.ServiceClient) -> Iterator[farstep.TrainingClient]:
    with local.create_lora_training_client(BASE_MODEL, rank=8) as client:
        yield client


@pytest.fixture
def sampling(local: farstep.ServiceClient) -> Iterator[farstep.SamplingClient]:
    with local.create_sampling_client(BASE_MODEL) as client:
        yield client
