"""Configurations that somebody else wrote: what reaches beyond them is refused by its name, and all else is left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from farstep.trainers.config import ANYTHING, NOTHING, Allowed, ConfigError, TrainerConfig, load_config
from farstep.trainers.operators.config import OperatorConfig

BLOB = {"url": "https://data.example/a.jsonl"}
REACHING: list[tuple[dict[str, Any], str, str]] = [
    ({"dataset": {"path": "/etc/passwd", "suffix": "csv"}}, "data.sources[0].path", "files"),
    ({"dataset": "rows.jsonl"}, "data.sources[0].path", "files"),
    ({"dataset": ["org/x", "file:///a.jsonl"]}, "data.sources[1].path", "files"),
    ({"dataset": {"name": "../secrets"}}, "data.sources[0].name", "files"),
    ({"dataset": {"name": "/srv/data"}}, "data.sources[0].name", "files"),
    ({"dataset": {"name": "org/x/../../y"}}, "data.sources[0].name", "files"),
    ({"dataset": {"name": "csv", "kwargs": {"data_files": "/etc/passwd"}}}, "data.sources[0].kwargs", "code"),
    ({"dataset": {"function": "os:listdir"}}, "data.sources[0].function", "code"),
    ({"dataset": lambda: [{"text": "a"}]}, "data.sources[0].function", "code"),
    ({"dataset": {"url": "http://a.example/a.jsonl", "allow_http": True}}, "data.sources[0].allow_http", "plain_http"),
    ({"dataset": {**BLOB, "allowPrivate": True}}, "data.sources[0].allow_private", "private_addresses"),
    ({"dataset": {**BLOB, "token_env": "AWS_SECRET_ACCESS_KEY"}}, "data.sources[0].token_env", "environment"),
    ({"eval_dataset": "rows.jsonl", "eval_interval": 1}, "data.eval_sources[0].path", "files"),
    ({"data": {"cache_dir": "/tmp/x"}}, "data.cache_dir", "files"),
    ({"code": "own.py"}, "code", "code"),
    ({"hooks": [("pre-step", print)]}, "hooks", "code"),
    ({"type": "grpo", "reward": "os:getenv"}, "rl.reward", "code"),
    ({"type": "grpo", "rl": {"agent": "os:system"}}, "rl.agent", "code"),
    ({"output_dir": "/srv/other"}, "output_dir", "files"),
    ({"kill_switch_path": "/tmp/x"}, "kill_switch_path", "files"),
    ({"checkpoint": {"type": "export", "output_dir": "/srv"}}, "checkpoint[0].output_dir", "files"),
    ({"model": {"base": "x", "tokenizer": "/srv/tokenizer"}}, "model.tokenizer", "files"),
    ({"trackers": ["wandb"]}, "trackers[0].name", "trackers"),
    ({"trackers": [{"name": "jsonl", "path": "/srv/a"}]}, "trackers[0].path", "files"),
]


@pytest.mark.parametrize(("settings", "field", "ability"), REACHING, ids=[each[1] for each in REACHING])
def test_what_reaches_beyond_is_refused_by_its_name(settings: dict[str, Any], field: str, ability: str) -> None:
    given = {"model": "x", **settings}
    only = dataclasses.replace(ANYTHING, **{ability: False})
    for allowed in (NOTHING, only):
        with pytest.raises(ConfigError, match="may not be named here") as caught:
            load_config(given, allowed=allowed)
        assert caught.value.field == field
    if ability != "code" or field != "code":
        with pytest.raises(ConfigError):
            load_config(TrainerConfig(**given), allowed=NOTHING)
        assert load_config(given) == TrainerConfig(**given)


@pytest.mark.parametrize("name", ["agent", "reward", "checkpoint_dir", "resume_from"])
def test_an_operator_trainers_too(name: str) -> None:
    with pytest.raises(ConfigError, match=f"operators.{name}: .* may not be named here"):
        load_config({"type": "operator", "operators": {name: "os:system"}}, OperatorConfig, allowed=NOTHING)


def test_what_stays_within_is_taken_as_it_is() -> None:
    for dataset in (
        "org/name:train[:10]",
        "squad",
        "https://data.example/a.jsonl",
        [{"text": "a"}],
        {**BLOB, "token": "t"},
    ):
        settings = {"model": "x", "dataset": dataset, "trackers": "jsonl", "extra": {"path": "/etc"}}
        assert load_config(settings, allowed=NOTHING) == load_config(settings)


def test_code_is_not_even_loaded(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "config.yaml").write_text("model: x\ncode: own.py\n")
    with pytest.raises(ConfigError, match="code: Python files may not be named here"):
        load_config(tmp_path / "config.yaml", allowed=NOTHING)
    assert not (tmp_path / "ran").exists()


def test_the_callers_own_settings_are_not_bound(tmp_path: Path) -> None:
    changes = {"output_dir": str(tmp_path), "data": {"cache_dir": str(tmp_path)}}
    config = load_config({"model": "x", "dataset": "org/x"}, allowed=NOTHING, **changes)
    assert (config.output_dir, config.data.cache_dir) == (str(tmp_path), str(tmp_path))
    with pytest.raises(ConfigError, match="path: files of this machine may not be named here"):
        load_config({"model": "x", "dataset": "a.jsonl"}, allowed=NOTHING, **changes)


def test_every_ability_is_one_that_something_needs() -> None:
    assert {ability for _, _, ability in REACHING} == {each.name for each in dataclasses.fields(Allowed)}
