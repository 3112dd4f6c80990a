"""Processes on this machine: started, waited for, watched, stopped.

A child says on standard output, in one JSON line, when it is ready; everything it writes goes to its log.
Its standard input is a pipe held open here, and every child is told to end when that closes: so none
outlives this process, however this process dies. A child that dies is reported, never restarted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal

State = Literal["starting", "running", "stopping", "stopped", "died"]

STOP_GRACE_S = 12.0  # a server gives its open requests 10 s
_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 4000


class LaunchFailed(Exception):
    """A process did not become ready; the message ends with the last lines of its log."""


def torch_environment() -> dict[str, str]:
    """Settings for torch processes that share this machine; what the user has set comes first.

    Passive waiting keeps one process from spinning on the cores of another (3.5 × faster with two of them).
    Each gets half the cores: trainer and sampler work at once in all but the simplest loops, and small models
    lose more to the meeting of threads than they gain (the demo takes 37 s with one each on two cores, 47 s with two).
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(max(1, num_cores // 2))}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


class LocalProcess:
    """One child. Made by `start`; ends by itself or by `stop`."""

    def __init__(self, name: str, process: Process, *, log: BinaryIO) -> None:
        self.name = name
        self.pid = process.pid
        self.log_path = Path(log.name)
        self.started_at = time.time()
        self._process = process
        self._log = log
        self._log_start = log.tell()
        self._stop_requested = False
        self._announced: asyncio.Future[Mapping[str, str] | None] = asyncio.get_running_loop().create_future()
        self._watch_task = asyncio.create_task(self._watch(), name=f"watch-{name}")

    @classmethod
    async def start(cls, name: str, argv: Sequence[str], *, env: Mapping[str, str], logs: Path) -> LocalProcess:
        """Starts `argv` with exactly `env`; its log is `<logs>/<name>.log`, appended to.

        Raises:
            LaunchFailed: the program is not there, or the log cannot be written.
        """
        try:
            log = _open_log(logs / f"{name}.log")
        except OSError as error:
            raise LaunchFailed(f"cannot write the log of {name}: {error}") from error
        try:
            # A session of its own: Ctrl-C in the terminal reaches us alone, and we stop children in order.
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=PIPE, stdout=PIPE, stderr=log, env=env, start_new_session=True
            )
        except BaseException as error:
            log.close()
            if isinstance(error, OSError):
                raise LaunchFailed(f"cannot start {name}: {error}") from error
            raise
        return cls(name, process, log=log)

    @property
    def state(self) -> State:
        if self._process.returncode is not None:
            return "stopped" if self._stop_requested else "died"
        if self._stop_requested:
            return "stopping"
        return "running" if self._announced.done() else "starting"

    async def ready(self, *, deadline_s: float) -> Mapping[str, str]:
        """The announcement, as soon as there is one.

        Raises:
            LaunchFailed: the process ended, or said nothing in time; it is stopped then.
        """
        await asyncio.wait([self._announced], timeout=deadline_s)
        if not self._announced.done():
            await self.stop()
            raise LaunchFailed(f"{self.name} was not ready within {deadline_s:g} s{self._log_tail()}")
        announcement = self._announced.result()
        if announcement is None:
            raise LaunchFailed(self.epitaph())
        return announcement

    async def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Asks the process to end, and kills it and its own children if it has not in `grace_s` seconds."""
        if self._process.returncode is None:
            self._stop_requested = True
            with suppress(ProcessLookupError):
                self._process.terminate()
            await asyncio.wait([self._watch_task], timeout=grace_s)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await asyncio.wait([self._watch_task])

    def epitaph(self) -> str:
        """How the process ended, for people."""
        code = self._process.returncode
        how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return f"{self.name} ended {how}{self._log_tail()}"

    async def _watch(self) -> None:
        assert self._process.stdout is not None
        try:
            async for line in _lines(self._process.stdout):
                announcement = None if self._announced.done() else _announcement(line)
                if announcement is None:
                    with suppress(OSError):  # a full disk must not stop us from reading on
                        self._log.write(line)
                        self._log.flush()
                else:
                    self._announced.set_result(announcement)
            await self._process.wait()
        finally:
            if not self._announced.done():
                self._announced.set_result(None)
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._log.close()

    def _log_tail(self) -> str:
        try:
            with open(self.log_path, "rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            lines = []
        where = f"; its log is {self.log_path}"
        if not lines:
            return where
        return f"{where} and ends with:\n" + "\n".join(lines[-_LOG_TAIL_LINES:])


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length, the last one whether or not it ends."""
    rest = b""
    while data := await stream.read(1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest + b"\n"


def _announcement(line: bytes) -> Mapping[str, str] | None:
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    if not isinstance(facts, dict) or facts.get("event") != "ready" or not facts.get("url"):
        return None
    return {key: str(value) for key, value in facts.items()}


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    log = open(path, "ab")  # noqa: SIM115 - closed by the watch task
    log.seek(0, os.SEEK_END)
    return log
