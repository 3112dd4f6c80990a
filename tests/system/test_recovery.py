"""Trainer, stack and control plane end while a client trains: it sees pauses, and the same bits."""

import json
import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

from farstep import AdamParams, Datum, ServiceClient
from farstep_model.embedded import model_dir

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


class Up:
    """A control plane that can be killed and started again in its home."""

    def __init__(self, home):
        self.home = home
        self.start()

    def start(self):
        argv = [sys.executable, "-m", "farstep_infra", "up", f"--home={self.home}", "--port=0"]
        pipe = subprocess.PIPE
        with open(self.home / "control.log", "ab") as log:
            self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=log, text=True)
        line = self.process.stdout.readline()
        assert line, (self.home / "control.log").read_text()
        self.url = json.loads(line)["url"]
        self.key = json.loads((self.home / "local.json").read_text())["api_key"]

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(timeout=60)
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()

    def call(self, method, path):
        headers = {"Authorization": f"Bearer {self.key}"}
        response = httpx.request(method, self.url + path, headers=headers, timeout=90)
        response.raise_for_status()
        return response.json()

    def trainer_of(self, run_id):
        url = self.call("GET", f"/v1/runs/{run_id}")["trainer_url"]
        return next(process for process in self.call("GET", "/v1/status")["processes"] if process["url"] == url)


@pytest.fixture
def up(tmp_path, monkeypatch):
    monkeypatch.setenv("FARSTEP_HOME", str(tmp_path))
    for name in ("FARSTEP_BASE_URL", "FARSTEP_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    running = Up(tmp_path)
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGTERM)


def step(trainer, index):
    data = [Datum.from_prompt_completion([1, 40 + index, 41], [60, 61 + index, 2])]
    return [trainer.forward_backward(data), trainer.optim_step(AdamParams(learning_rate=1e-2))]


def bits(trainer):
    data = [Datum.from_prompt_completion([1, 40, 41], [60, 61, 62, 2])]
    return trainer.forward(data).result(timeout=120).loss_fn_outputs[0]["logprobs"].to_numpy().tobytes()


def test_a_run_goes_on_to_the_bit_over_deaths_and_rest_and_another_control_plane(up):
    with ServiceClient() as service:
        undisturbed = service.create_lora_training_client("farstep/tiny", rank=4, seed=1, with_sampler=False)
        for index in range(5):
            for future in step(undisturbed, index):
                future.result(timeout=60)
        # The same model by another name has a stack of its own, which is not the default one and may rest.
        trainer = service.create_lora_training_client(str(model_dir()), rank=4, seed=1, with_sampler=False)
        for future in step(trainer, 0):
            future.result(timeout=60)

        before = up.trainer_of(trainer.run_id)
        futures = step(trainer, 1)
        os.kill(before["pid"], signal.SIGKILL)
        futures += step(trainer, 2)
        for future in futures:
            future.result(timeout=120)
        after = up.trainer_of(trainer.run_id)
        assert (after["name"], after["url"]) == (before["name"], before["url"])
        assert after["num_restarts"] == 1

        assert up.call("POST", f"/v1/runs/{trainer.run_id}/deactivate")["state"] == "inactive"
        assert not psutil.pid_exists(after["pid"])
        assert up.call("GET", f"/v1/runs/{trainer.run_id}?wait_s=60")["state"] == "ready"
        for future in step(trainer, 3):
            future.result(timeout=60)

        family = psutil.Process(up.process.pid).children(recursive=True)
        up.end(signal.SIGKILL)
        assert psutil.wait_procs(family, timeout=20)[1] == []
        up.start()
        for future in step(trainer, 4):
            future.result(timeout=120)
        assert bits(trainer) == bits(undisturbed)
