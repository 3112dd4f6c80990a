"""What needs an optional package: the tokenizer, wandb; and how its absence is said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import farstep
from farstep import WandbConfig
from tests.unit.client.fake_control import ControlPlane
from tests.unit.client.fake_sampler import Sampler
from tests.unit.client.fake_server import BASE_MODEL
from tests.unit.client.fake_trainer import Trainer
from tests.unit.client.test_training import datum


@pytest.mark.filterwarnings("ignore")
def test_the_tokenizer_comes_from_the_server_once(
    client: farstep.TrainingClient, trainer: Trainer, tmp_path: Path
) -> None:
    tokenizer = client.get_tokenizer()
    assert tokenizer.encode("two three one") == [2, 3, 1]
    assert client.get_tokenizer() is tokenizer
    assert trainer.count("/v1/tokenizer") == 1
    (folder,) = (tmp_path / "cache" / "farstep" / "tokenizers").iterdir()
    assert {file.name for file in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_without_transformers(client: farstep.TrainingClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(farstep.MissingExtraError, match=r"pip install 'farstep\[tokenizers\]'") as caught:
        client.get_tokenizer()
    assert isinstance(caught.value, ImportError)


def test_without_wandb_nothing_is_provisioned(
    service: farstep.ServiceClient, control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(farstep.MissingExtraError, match=r"pip install 'farstep\[wandb\]'"):
        service.create_lora_training_client(BASE_MODEL, wandb_config=WandbConfig("p"))
    assert control.provisioned == []


class FakeWandbRun:
    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []
        self.is_finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, record: dict[str, float]) -> None:
        self.records.append(record)

    def finish(self) -> None:
        self.is_finished = True


class FakeWandb:
    def __init__(self) -> None:
        self.run = FakeWandbRun()
        self.settings: dict[str, Any] = {}

    def init(self, **settings: Any) -> FakeWandbRun:
        self.settings = settings
        return self.run


def test_metrics_stream_as_results_arrive(
    local: farstep.ServiceClient, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    config = WandbConfig("project", name="name", tags=("a",), mode="offline", config={"note": 1})
    with local.create_lora_training_client(BASE_MODEL, 8, wandb_config=config) as client:
        client.forward_backward([datum(3), datum(5)])
        client.forward([datum()])  # no part of the training
        client.optim_step(farstep.AdamParams(learning_rate=0.5))
        client.save_weights_for_sampler("s")
        client.forward_backward([datum(4)])
        client.optim_step().result()
    assert wandb.run.is_finished
    first, second = wandb.run.records
    assert (first["step"], first["loss"], first["loss:sum"], first["grad_norm"]) == (1, 2.5, 8, 0.5)
    assert (first["learning_rate"], first["policy_version"]) == (0.5, 0)
    assert (second["step"], second["policy_version"]) == (2, 1)
    assert second["tokens_per_s"] > 0
    assert (wandb.settings["project"], wandb.settings["mode"], wandb.settings["tags"]) == ("project", "offline", ("a",))
    assert wandb.settings["config"]["note"] == 1
    assert wandb.settings["config"]["lora.rank"] == 8


def test_a_wandb_that_fails_does_not_stop_training(
    local: farstep.ServiceClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = FakeWandb()
    monkeypatch.setattr(wandb.run, "log", lambda record: 1 / 0)
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    with local.create_lora_training_client(BASE_MODEL, wandb_config=WandbConfig("p")) as client:
        for _ in range(2):
            client.forward_backward([datum()])
            client.optim_step().result()
    assert [record.message for record in caplog.records if "wandb" in record.message] == [
        "wandb takes no metrics: division by zero"
    ]


@pytest.mark.filterwarnings("ignore")
def test_offline_wandb_leaves_its_files(local: farstep.ServiceClient, tmp_path: Path) -> None:
    config = WandbConfig("project", mode="offline", dir=str(tmp_path))
    with local.create_lora_training_client(BASE_MODEL, wandb_config=config) as client:
        client.forward_backward([datum()])
        client.optim_step().result()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
