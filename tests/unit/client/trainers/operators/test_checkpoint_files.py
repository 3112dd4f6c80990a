"""Checkpoint files: whole or not there, and nowhere but in their folder."""

import json
import os

import pytest

from farstep.trainers import TrainerError
from farstep.trainers.operators import CheckpointFiles


def test_what_was_saved_is_loaded_and_the_latest_is_the_highest_epoch(tmp_path):
    files = CheckpointFiles(tmp_path / "new" / "folder")
    assert files.latest() is None
    for epoch in (2, 10, 9):
        files.save(epoch, {"x": epoch})
    assert files.load(9) == {"version": 1, "epoch": 9, "x": 9}
    assert files.load("checkpoint_2.json")["x"] == 2
    assert files.latest()["epoch"] == 10
    assert files.load(3) is None
    files.keep_last(1, also=2)
    assert files.epochs() == [2, 10]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    files = CheckpointFiles(tmp_path)
    files.save(1, {"x": 1})
    with pytest.raises(TrainerError, match="the state cannot be written"):
        files.save(1, {"x": float("nan")})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainerError, match=r"checkpoint_1\.json cannot be written: No space left on device"):
        files.save(1, {"x": 2})
    assert files.load(1)["x"] == 1
    assert os.listdir(tmp_path) == ["checkpoint_1.json"]


def test_it_stays_in_its_folder(tmp_path):
    (tmp_path / "checkpoint_1.json").write_text(json.dumps({"version": 1, "epoch": 1}))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "checkpoint_2.json").symlink_to(tmp_path / "checkpoint_1.json")
    files = CheckpointFiles(inside)
    for name in ("../checkpoint_1.json", str(tmp_path / "checkpoint_1.json"), "checkpoint_2.json", "notes.txt", ""):
        with pytest.raises(TrainerError, match="is no checkpoint in"):
            files.load(name)
    for epoch in (-1, True, 1.5, "../1"):
        with pytest.raises(TrainerError, match="epoch"):
            files.save(epoch, {})


@pytest.mark.parametrize("text", ["", "{", "3", '{"epoch": 1}', '{"version": 1, "epoch": "1"}', "\x00"])
def test_a_damaged_file_is_an_error(tmp_path, text):
    (tmp_path / "checkpoint_1.json").write_text(text)
    with pytest.raises(TrainerError, match="is damaged"):
        CheckpointFiles(tmp_path).latest()


def test_a_newer_versions_file_is_refused(tmp_path):
    (tmp_path / "checkpoint_1.json").write_text('{"version": 2, "epoch": 1}')
    with pytest.raises(TrainerError, match="newer version"):
        CheckpointFiles(tmp_path).load(1)
