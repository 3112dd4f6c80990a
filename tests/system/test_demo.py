"""The demo in small: the same processes and loops, fewer steps; nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def demo(tmp_path, *arguments):
    command = [sys.executable, "-m", "farstep.cli.main", "demo", "--home", tmp_path / "home", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def left_behind(home):
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            command = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and str(home) in " ".join(command):
                left.append(command)
    return left


def test_the_demo_in_small(tmp_path):
    out = tmp_path / "demo.json"
    process = demo(tmp_path, "--sft-steps", "4", "--rl-steps", "3", "--json", out, "--plot", tmp_path / "demo.png")
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    summary = json.loads(out.read_text())
    assert summary["heldout_loss_after"] < summary["heldout_loss_before"]
    assert 0 <= summary["reward_before"] <= 1
    assert summary["policy_versions"] == [1, 2, 3, 4, 5]
    assert summary["train_tokens_per_s"] > 0
    assert summary["sample_tokens_per_s"] > 0
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "home" / "store").is_dir()
    assert left_behind(tmp_path / "home") == []


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    process = demo(tmp_path, "--rl-steps", "1000")
    for line in process.stdout:
        if "step 2" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    process.communicate(timeout=60)
    assert process.returncode == 130
    deadline = time.monotonic() + 10
    while left_behind(tmp_path / "home") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind(tmp_path / "home") == []
