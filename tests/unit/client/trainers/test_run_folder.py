"""A run's folder: what is written there is whole, or is what was there before."""

import errno
import os

import pytest

from farstep.trainers import TrainerError
from farstep.trainers.run_folder import RunFolder


def test_a_full_disk_is_told_with_the_file_and_leaves_what_was_there(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, "a run")
    folder.take()
    folder.write(run_id="run-1", step=1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        TrainerError, match=r"output_dir: .*run\.json cannot be written: No space left on device \(make"
    ):
        folder.write(run_id="run-1", step=2)
    assert folder.read() == {"run_id": "run-1", "step": 1}
    folder.release()
