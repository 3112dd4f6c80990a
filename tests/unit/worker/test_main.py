"""The process: its flags, its one line, its end."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

from farstep_worker.config import read_config
from farstep_worker.snapshots import SnapshotLimits

BASE = ["--store", "/tmp/store"]


def test_defaults(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("FARSTEP_API_KEY", raising=False)
    config = read_config(BASE)
    assert (config.model, config.host, config.port, config.device) == ("farstep/tiny", "127.0.0.1", 0, "auto")
    assert (config.max_request_bytes, config.max_datum_bytes) == (8 << 20, 72 << 20)
    assert (config.max_runs, config.run_memory_bytes, config.fuse_runs) == (1000, None, True)
    given = read_config([*BASE, "--max-runs", "7", "--run-memory-mib", "3", "--fuse-runs", "off"])
    assert (given.max_runs, given.run_memory_bytes, given.fuse_runs) == (7, 3 << 20, False)
    assert config.num_threads == os.cpu_count()
    assert config.keys.digests == ()


def test_the_environment_gives_key_and_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("FARSTEP_API_KEY", "secret")
    config = read_config(BASE)
    assert config.num_threads == 3
    assert len(config.keys.digests) == 1
    assert "secret" not in repr(config)


def test_snapshots_as_often_as_the_operator_says(monkeypatch):
    monkeypatch.delenv("FARSTEP_SNAPSHOT_OPERATIONS", raising=False)
    assert read_config(BASE).snapshots == SnapshotLimits()
    assert read_config([*BASE, "--snapshot-operations", "7"]).snapshots == SnapshotLimits(operations=7, worth=0.0)
    monkeypatch.setenv("FARSTEP_SNAPSHOT_OPERATIONS", "9")
    assert read_config(BASE).snapshots.operations == 9
    monkeypatch.setenv("FARSTEP_SNAPSHOT_OPERATIONS", "often")
    with pytest.raises(SystemExit):
        read_config(BASE)


def test_several_processes_share_the_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert read_config(BASE).nproc == 1
    assert [read_config([*BASE, "--nproc", n]).num_threads for n in ("2", "3", "8")] == [3, 2, 1]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        [*BASE, "--port", "70000"],
        [*BASE, "--token-budget", "0"],
        [*BASE, "--nproc", "0"],
        [*BASE, "--max-request-bytes", "-5"],
        [*BASE, "--log-level", "LOUD"],
        [*BASE, "--unknown"],
    ],
)
def test_flags_that_make_no_sense(flags, capsys):
    with pytest.raises(SystemExit):
        read_config(flags)
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["many", "0", ""])
def test_a_number_of_threads_that_makes_no_sense(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(SystemExit, match="OMP_NUM_THREADS"):
        read_config(BASE)


def start(tmp_path, *flags, **environment):
    command = [sys.executable, "-m", "farstep_worker", "--store", str(tmp_path / "store"), *flags]
    env = {key: value for key, value in os.environ.items() if key != "FARSTEP_API_KEY"}
    return subprocess.Popen(
        command,
        env={**env, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_open_server_on_another_address_does_not_start(monkeypatch):
    monkeypatch.delenv("FARSTEP_API_KEY", raising=False)
    with pytest.raises(SystemExit, match="FARSTEP_API_KEY"):
        read_config([*BASE, "--host", "0.0.0.0"])
    monkeypatch.setenv("FARSTEP_API_KEY", "secret")
    assert read_config([*BASE, "--host", "0.0.0.0"]).host == "0.0.0.0"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--model", "/there/is/none"), "/there/is/none"),
        (("--device", "cuda:1"), "cannot share"),
    ],
)
def test_several_processes_that_cannot_start_end_at_once(tmp_path, flags, why):
    with start(tmp_path, "--nproc", "2", *flags) as process:
        stdout, stderr = process.communicate(timeout=40)
    assert process.returncode == 1
    assert stdout == ""
    assert why in stderr
    assert "Traceback" not in stderr


def test_a_worker_says_where_it_listens_serves_and_ends_at_once(tmp_path):
    with start(tmp_path, "--exit-with-parent", FARSTEP_API_KEY="secret") as process:
        try:
            facts = json.loads(process.stdout.readline())
            assert (facts["event"], facts["pid"]) == ("ready", process.pid)
            assert facts["feed"].startswith("127.0.0.1:")
            assert httpx.get(facts["url"] + "/v1/info").status_code == 401
            headers = {"authorization": "Bearer secret"}
            assert httpx.get(facts["url"] + "/v1/info", headers=headers).json()["feed"] == facts["feed"]
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=10)
            assert time.monotonic() - started < 8
            assert "Traceback" not in stderr
            assert "secret" not in stderr
        finally:
            process.kill()
