"""Clients under supervision: a process per program, started again whenever it dies before its program has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.chaos import diary
from tests.chaos.events import Events, Seen
from tests.chaos.programs import Program, program

_MOST_ERRORS = 3  # processes that end by themselves with an error, before it is given up


class Supervised:
    """Args:
    name: unique; its diary and its log are called so.
    environment: of the process, whole.
    """

    def __init__(
        self, name: str, seed: int, *, num_steps: int, directory: Path, environment: Mapping[str, str], events: Events
    ) -> None:
        self.name = name
        self.program: Program = program(seed, num_steps=num_steps)
        self.diary_path = directory / f"{name}.diary"
        self.log_path = directory / f"{name}.log"
        self.num_starts = 0
        self._argv = [
            *(sys.executable, "-m", "tests.chaos.client", f"--seed={seed}", f"--steps={num_steps}"),
            f"--diary={self.diary_path}",
        ]
        self._environment = dict(environment)
        self._events = events
        self._process: subprocess.Popen[bytes] | None = None
        self._is_wanted = True
        self._is_over = False
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def start(self) -> Supervised:
        self._thread.start()
        return self

    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def is_over(self) -> bool:
        return self._is_over

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return self._is_over

    def give_up(self) -> None:
        """Kills it, for good."""
        self._is_wanted = False
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._thread.join(10.0)

    def known(self) -> diary.Known:
        return diary.read(self.diary_path)

    def _keep(self) -> None:
        try:
            self._start_again()
        finally:
            self._is_over = True
            self._events.tell(Seen(self.name, "over"))

    def _start_again(self) -> None:
        num_errors = 0
        while self._is_wanted and num_errors < _MOST_ERRORS:
            code = self._run_once()
            if code == 0:
                return
            num_errors += code > 0
            if code > 0:
                time.sleep(0.5)

    def _run_once(self) -> int:
        self.num_starts += 1
        with open(self.log_path, "ab") as log:
            process = subprocess.Popen(
                self._argv, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        self._process = process
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._tell(line)
        return process.wait()

    def _tell(self, line: bytes) -> None:
        try:
            facts = json.loads(line)
        except ValueError:
            return
        index = facts.get("index", -1)
        call = type(self.program.calls[index]).__name__ if index >= 0 else ""
        self._events.tell(Seen(self.name, facts["what"], {"call": call}))
