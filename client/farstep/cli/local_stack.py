"""A whole installation on this machine for as long as a `with` block lasts.

It starts `python -m farstep_infra up` as a child and knows nothing of what that does beyond its command line,
its announcement and `local.json`. However the block ends, and however this process does, nothing of it goes
on running: the child ends when its standard input, held open here, closes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

_NEEDED = (
    "starlette",
    "uvicorn",
    "sqlalchemy",
    "aiosqlite",
    "pydantic",
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "grpc",
)
_STOP_WITHIN_S = 30.0
_LOOK_EVERY_S = 0.2
_LOG_TAIL_LINES = 20


class LocalStackError(Exception):
    """The installation did not start, or ended by itself; the message says why and what to do."""


def default_home() -> Path:
    """Where `farstep up` keeps its state: `$FARSTEP_HOME`, else `~/.farstep`."""
    return Path(os.environ.get("FARSTEP_HOME") or Path.home() / ".farstep").expanduser().resolve()


class LocalStack:
    """Control plane, trainer and sampler as processes; ready inside the `with` block.

    Args:
        model: base model id or directory; None is the embedded one.
        host: address to listen on.
        port: of the control plane; 0 takes a free one.
        replicas: sampler processes.
        device: "auto", "cpu", "cuda" or "cuda:0".
        home: directory of state, logs and, unless `store` names another place, checkpoints.
        store: a directory or s3://bucket/prefix.
        more: further flags of the control plane.
        database: postgresql://user:password@host/name; empty: $FARSTEP_DATABASE_URL, or a file in the home.
        on_wait: called a few times a second while it starts, with the seconds so far.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        replicas: int = 1,
        device: str = "auto",
        home: Path | None = None,
        store: str = "",
        more: Sequence[str] = (),
        database: str = "",
        on_wait: Callable[[float], None] = lambda elapsed_s: None,
    ) -> None:
        self.home = home.expanduser().resolve() if home is not None else default_home()
        self.store = store or str(self.home / "store")
        self.log_path = self.home / "logs" / "control.log"
        self.base_url = ""
        self.api_key = ""
        self.trainer_url = ""
        self.sampler_url = ""
        self._on_wait = on_wait
        self._environment = {**os.environ, **({"FARSTEP_DATABASE_URL": database} if database else {})}
        self._process: subprocess.Popen[str] | None = None
        self._log_start = 0
        model_args = [] if model is None else [f"--model={model}"]
        store_args = [f"--store={store}"] if store else []
        settings = [f"--host={host}", f"--port={port}", f"--replicas={replicas}", f"--device={device}"]
        self._argv = ["up", "--exit-with-parent", f"--home={self.home}", *settings, *model_args, *store_args, *more]

    def __enter__(self) -> LocalStack:
        """Returns when everything is ready.

        Raises:
            LocalStackError: a package is missing, the port is taken, the model does not load, …
        """
        _check_installed()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def wait(self) -> None:
        """Until it ends by itself.

        Raises:
            LocalStackError: it has, with the last lines of its log.
        """
        assert self._process is not None
        self._process.wait()
        raise self._failure("the control plane ended")

    def _start(self) -> None:
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            log = open(self.log_path, "a")  # noqa: SIM115 - closed below, when the child has it
        except OSError as error:
            raise LocalStackError(f"cannot write to {self.home}: {error.strerror}") from error
        with log:
            self._log_start = log.seek(0, os.SEEK_END)
            # -P: a file in the user's directory must not shadow a module of the child.
            # A session of its own: Ctrl-C in a terminal comes here alone, and is passed on once.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "farstep_infra", *self._argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=self._environment,  # not the command line, which everybody can read, for a database's password
            )
        announcement = self._announcement(self._process)
        self.base_url = announcement["url"]
        self.trainer_url = announcement["trainer_url"]
        self.sampler_url = announcement["sampler_url"]
        self.api_key = json.loads((self.home / "local.json").read_text())["api_key"]

    def _announcement(self, process: subprocess.Popen[str]) -> dict[str, str]:
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        readline = process.stdout.readline
        threading.Thread(target=lambda: lines.put(readline()), name="local-stack", daemon=True).start()
        started = time.monotonic()
        while True:
            try:
                line = lines.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                self._on_wait(time.monotonic() - started)
                continue
            if not line:
                process.wait()
                raise self._failure("the control plane did not start")
            announcement: dict[str, str] = json.loads(line)
            return announcement

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        self._process = None
        process.terminate()
        try:
            process.wait(timeout=_STOP_WITHIN_S)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            process.kill()  # a second Ctrl-C; its children see it go and end too
            process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()

    def _failure(self, what: str) -> LocalStackError:
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        tail = "\n".join(lines[-_LOG_TAIL_LINES:])
        return LocalStackError(f"{what}:\n{tail}\nthe whole log is {self.log_path}")


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LocalStackError(
            f"this needs packages that are not installed ({', '.join(missing)}): pip install 'farstep[all]'"
        )
