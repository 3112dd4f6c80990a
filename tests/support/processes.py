"""Server processes for tests: started, waited for, and ended with the test that wanted them."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

KEY = "fsk-test"
START_TIMEOUT_S = 60


class Server:
    """A process that announced itself. `facts` is what it announced."""

    def __init__(self, module, *arguments, key=KEY, env=None):
        self._arguments = [sys.executable, "-m", *module.split(), *map(str, arguments), "--exit-with-parent"]
        self._env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", **(env or {})}
        if key:
            self._env["FARSTEP_API_KEY"] = key
        self.log = []

    def start(self):
        self.process = subprocess.Popen(
            self._arguments, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self._reader.start()
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.stop()
            raise AssertionError(f"{self._arguments} did not start:\n{''.join(self.log)}")
        self.facts = json.loads(line)
        self.url = self.facts["url"]
        return self

    def kill(self):
        """As abruptly as it gets."""
        self.process.kill()
        self._close()

    def restart(self):
        """Once more after its end, with the same flags and at the same addresses."""
        ports = {"--port": self.url, **({"--feed-port": self.facts["feed"]} if self.facts.get("feed") else {})}
        for flag, address in ports.items():
            if flag not in self._arguments:
                self._arguments += [flag, address.rsplit(":", 1)[1]]
        return self.start()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._close()

    def _close(self):
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


@contextmanager
def running(module, *arguments, **kwargs):
    server = Server(module, *arguments, **kwargs).start()
    try:
        yield server
    finally:
        if server.process.returncode is None:
            server.stop()


@contextmanager
def trainer_and_sampler(store: Path | str, *, model="farstep/tiny", trainer_options=(), sampler_options=(), env=None):
    """A hand-started pair, as `ServiceClient.local` binds to."""
    shared = ("--model", model, "--store", store)
    with (
        running("farstep_worker", *shared, *trainer_options, env=env) as trainer,
        running("farstep_sampler", *shared, "--feed", trainer.facts["feed"], *sampler_options, env=env) as sampler,
    ):
        yield trainer, sampler
