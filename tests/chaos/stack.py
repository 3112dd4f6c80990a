"""A whole installation under the suite's hand: `farstep up` in a home of its own, started again whenever it dies.

It does to the control plane what an init system would (start it again, at the same port, as often as it takes) and
leaves everybody else to the control plane. All processes carry a mark in their environment, so that none is missed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from tests.chaos import census
from tests.chaos.census import Role

START_S = 180.0
STOP_S = 40.0
_START_AGAIN_S = 0.2
_SNAPSHOT_OPERATIONS = 25  # many in a short run, so that kills meet them
HOST = "127.0.0.2"  # a client on this machine uses a proxy of the environment for it, and does not for 127.0.0.1


class Stack:
    """Args:
    home: empty at first, or what an earlier installation left.
    arguments: more of `farstep up`.
    """

    def __init__(self, home: Path, *, replicas: int = 2, arguments: tuple[str, ...] = ()) -> None:
        self.home = home
        self.mark = uuid.uuid4().hex
        self.num_starts = 0
        self.scratch = home.with_name(home.name + "-tmp")
        self._port = _free_port()
        self._argv = [
            *(sys.executable, "-P", "-m", "farstep_infra", "up", f"--home={home}", f"--host={HOST}"),
            *(f"--port={self._port}", f"--replicas={replicas}", "--device=cpu", *arguments),
        ]
        self._is_wanted = threading.Event()
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._announced: Mapping[str, str] = {}
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    @property
    def key(self) -> str:
        return (self.home / "api_key").read_text().strip()

    def environment(self) -> dict[str, str]:
        """Of every process of this installation and of its clients."""
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        kept.pop("FARSTEP_API_KEY", None)
        own = {census.MARK: self.mark, "PYTHONFAULTHANDLER": "1", "TMPDIR": str(self.scratch)}
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "FARSTEP_PROGRESS": "0"}
        own["FARSTEP_SNAPSHOT_OPERATIONS"] = str(_SNAPSHOT_OPERATIONS)
        return kept | own | quiet

    def start(self) -> None:
        """Returns at once; `wait_ready` waits."""
        for directory in (self.home, self.scratch, self.home / "logs"):
            directory.mkdir(parents=True, exist_ok=True)
        self._is_wanted.set()
        self._keeper.start()

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Until the control plane that runs now has announced that all of its processes serve.

        Raises:
            TimeoutError: with the end of its log.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._announced), timeout_s):
                tail = (self.home / "logs" / "control.log").read_text(errors="replace")[-3000:]
                raise TimeoutError(f"not ready after {timeout_s:g} s:\n{tail}")

    @property
    def is_ready(self) -> bool:
        return bool(self._announced)

    def pid(self) -> int | None:
        """Of the control plane, while it lives."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def processes(self) -> dict[Role, list[int]]:
        return census.by_role(self.mark)

    def let_go(self) -> None:
        """It is not started again."""
        self._is_wanted.clear()

    def stop(self) -> None:
        """In good order, as a person would; then nothing may be left (see `census.left_behind`)."""
        self.let_go()
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._keeper.is_alive():
            self._keeper.join(STOP_S)

    def _keep(self) -> None:
        while self._is_wanted.is_set():
            began_at = time.monotonic()
            self._run_once()
            if time.monotonic() - began_at < 1.0:
                time.sleep(_START_AGAIN_S)  # one that cannot start must not be started a thousand times

    def _run_once(self) -> None:
        with open(self.home / "logs" / "control.log", "ab") as log:
            process = subprocess.Popen(
                self._argv,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._process = process
        self.num_starts += 1
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._say(json.loads(line) if line.startswith("{") else {})
        process.wait()
        self._say({})

    def _say(self, announced: Mapping[str, str]) -> None:
        with self._changed:
            self._announced = announced
            self._changed.notify_all()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
