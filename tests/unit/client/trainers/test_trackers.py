"""Trackers: each with its own package where that is installed, and none that ends a run."""

import json
import sys
from pathlib import Path

import pytest

from farstep.errors import MissingExtraError
from farstep.trainers import Tracker
from farstep.trainers.trackers.base import TrackedRun, Trackers

METRICS = {"train/loss": 1.5, "train/bad": float("nan")}


def run(tmp_path, **settings):
    return TrackedRun("run", tmp_path, settings, {"epochs": 1})


def test_the_names_there_are():
    assert {"jsonl", "wandb", "tensorboard", "trackio"} <= set(Tracker.names())


def test_lines_of_json_go_on_in_the_same_file(tmp_path):
    for step in (1, 2):
        trackers = Trackers([(Tracker.get("jsonl")(), run(tmp_path))])
        trackers.start()
        trackers.log(METRICS, step)
        trackers.finish("completed")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": step, "train/loss": 1.5, "train/bad": None, "not_finite": ["train/bad"]} for step in (1, 2)
    ]


class Broken(Tracker):
    name = "broken"

    def __init__(self, *, breaks):
        self.breaks = breaks

    def start(self, run):
        return self.may_break("start") or "id"

    def log(self, metrics, step):
        self.may_break("log")

    def finish(self, state):
        self.may_break("finish")

    def may_break(self, where):
        if where == self.breaks:
            raise ConnectionError(f"offline at {where}")


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_one_that_fails_is_said_once_and_ends_nothing(tmp_path, caplog, where):
    trackers = Trackers([(Broken(breaks=where), run(tmp_path)), (Tracker.get("jsonl")(), run(tmp_path))])
    trackers.start()
    for step in range(3):
        trackers.log({"loss": 1.0}, step)
    trackers.finish("completed")
    assert caplog.text.count(f"offline at {where}") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_full_disk_ends_nothing(tmp_path, caplog):
    trackers = Trackers([(Tracker.get("jsonl")(), run(tmp_path, path="/dev/full"))])
    trackers.start()
    trackers.log({"loss": 1.0}, 1)
    trackers.finish("completed")
    assert "training goes on" in caplog.text


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_package_that_is_missing_is_said_with_its_extra(monkeypatch, name):
    for module in ("wandb", "tensorboardX", "torch.utils.tensorboard", "trackio"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"the tracker {name} needs .*farstep\[{name}\]"):
        Tracker.get(name).require()


def test_wandb_offline_needs_no_network_and_goes_on_under_its_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    kind = Tracker.get("wandb")
    kind.require()
    ids = []
    for resume_id in ("", None):
        tracker = kind()
        settings = {"mode": "offline", "dir": str(tmp_path), "project": "tests"}
        given = TrackedRun("run", tmp_path, settings, {"epochs": 1}, ids[0] if resume_id is None else "")
        ids.append(tracker.start(given))
        tracker.log({"train/loss": 1.0}, 1)
        tracker.finish("completed")
    assert ids[0] == ids[1] != ""
    assert len(list(Path(tmp_path).glob("wandb/offline-run-*"))) >= 1


def test_tensorboard_gets_a_file_of_events(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = Tracker.get("tensorboard")()
    folder = Path(tracker.start(run(tmp_path)))
    tracker.log({"train/loss": 1.5}, 7)
    tracker.finish("completed")
    (file,) = folder.iterdir()
    assert b"train/loss" in file.read_bytes()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("trackio", "trackio")])
def test_the_calls_that_a_package_gets(tmp_path, monkeypatch, name, module):
    calls = []

    class Fake:
        name = "given"

        def __getattr__(self, called):
            return lambda *args, **kwargs: calls.append(called)

        def __call__(self, *args, **kwargs):
            calls.append("made")
            return self

    fake = type(sys)(module)
    fake.SummaryWriter = Fake()
    fake.init = fake.SummaryWriter
    monkeypatch.setitem(sys.modules, module, fake)
    tracker = Tracker.get(name)()
    tracker.require()
    assert tracker.start(run(tmp_path))
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish("completed")
    logged = {"tensorboard": ["made", "add_scalar", "flush", "close"], "trackio": ["made", "log", "finish"]}
    assert calls == logged[name]
