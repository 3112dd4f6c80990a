"""The `farstep` command as a process, with fake trainers and samplers behind a real control plane."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FAKES = Path(__file__).parents[1] / "infra" / "fakes"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    """A home of the test's own, in which every child finds the fakes."""
    for name in [name for name in os.environ if name.startswith("FARSTEP_")]:
        monkeypatch.delenv(name)
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), *before]))
    monkeypatch.setenv("FARSTEP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def farstep() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `farstep …`, in a process group of its own as a terminal would; kills what a test leaves."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-u", "-m", "farstep.cli.main", *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
