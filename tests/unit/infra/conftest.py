"""The real control plane as a process, with fake trainers and samplers behind it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

FAKES = Path(__file__).parent / "fakes"


def fake_environment(**more: str) -> dict[str, str]:
    """An environment in which `python -m farstep_worker` and `farstep_sampler` are the fakes."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FARSTEP_")}
    before = [path for path in [os.environ.get("PYTHONPATH")] if path]
    return {**ours, "PYTHONPATH": os.pathsep.join([str(FAKES), *before]), **more}


@dataclass
class Up:
    """A running `farstep_infra up`."""

    process: subprocess.Popen[str]
    home: Path
    announcement: dict[str, Any]
    key: str

    @property
    def url(self) -> str:
        return self.announcement["url"]

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, *, status: int | None = None) -> Any:
        """One JSON call; an error's message unless `status` says otherwise."""
        response = httpx.request(
            method, self.url + path, json=body, headers={"Authorization": f"Bearer {self.key}"}, timeout=30
        )
        expected = (200, 201, 202) if status is None else (status,)
        assert response.status_code in expected, response.text
        return response.json()

    def session(self, **fields: Any) -> str:
        return self.call("POST", "/v1/sessions", fields)["session_id"]

    def run(self, session_id: str, **fields: Any) -> dict[str, Any]:
        """Asks for a run and waits until it is settled."""
        request = {"base_model": "fake/one", "lora": {"rank": 4, "train_mlp": True}, "with_sampler": True, **fields}
        run = self.call("POST", f"/v1/sessions/{session_id}/runs", request)
        assert run["state"] == "provisioning"
        return self.call("GET", f"/v1/runs/{run['run_id']}?wait_s=30")

    def asked(self, server_url: str) -> dict[str, Any]:
        """What a fake server was started with."""
        return httpx.get(server_url + "/asked", headers={"Authorization": f"Bearer {self.key}"}).json()

    def use(self, server_url: str, **query: Any) -> None:
        """Has a fake server count `tokens` of a `run_id` and its `project`."""
        headers = {"Authorization": f"Bearer {self.key}"}
        httpx.post(server_url + "/use", params=query, headers=headers).raise_for_status()

    def says(self, server_url: str, name: str, value: Any) -> bool:
        """Whether a fake server is there and tells that of itself."""
        try:
            return self.asked(server_url)[name] == value
        except httpx.HTTPError:
            return False

    def text(self, method: str, path: str) -> str:
        response = httpx.request(method, self.url + path, headers={"Authorization": f"Bearer {self.key}"}, timeout=30)
        assert response.status_code == 200, response.text
        return response.text

    def kill_process(self, pid: int) -> None:
        """kill -9; returns when it is gone."""
        process = psutil.Process(pid)
        process.kill()
        psutil.wait_procs([process], timeout=20)

    def process_at(self, url: str) -> dict[str, Any]:
        """What the control plane tells of the process with that address."""
        (found,) = [process for process in self.processes() if process["url"] == url]
        return found

    def kill_server(self, server_url: str) -> None:
        with pytest.raises(httpx.HTTPError):
            httpx.get(server_url + "/die", headers={"Authorization": f"Bearer {self.key}"})

    def processes(self, role: str | None = None) -> list[dict[str, Any]]:
        listed = self.call("GET", "/v1/status")["processes"]
        return [process for process in listed if role in (None, process["role"])]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    @staticmethod
    def wait_until(true: Callable[[], bool], *, within_s: float = 20) -> None:
        deadline = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        code = self.process.wait(timeout=30)
        self.close()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()


def start_up(home: Path, *arguments: str, **environment: str) -> Up:
    argv = [sys.executable, "-m", "farstep_infra", "up", f"--home={home}", *arguments]
    if not any(argument.startswith("--port") for argument in arguments):
        argv.append("--port=0")
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=fake_environment(**environment)
    )
    line = process.stdout.readline()
    if not line:
        process.wait(timeout=30)
        complaint = process.stderr.read()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        raise ChildProcessError(f"exit code {process.returncode}: {complaint}")
    return Up(process, home, json.loads(line), json.loads((home / "local.json").read_text())["api_key"])


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One control plane for a whole file; its default model is `fake/one`."""
    with tempfile.TemporaryDirectory() as home:
        running = start_up(Path(home), "--model=fake/one")
        yield running
        running.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts control planes of a test's own, on one home, and ends those that it left."""
    started: list[Up] = []

    def start_one(*arguments: str, **environment: str) -> Up:
        started.append(start_up(tmp_path / "home", "--model=fake/one", *arguments, **environment))
        return started[-1]

    yield start_one
    for running in started:
        if running.process.poll() is None:
            running.stop()
        else:
            running.close()
