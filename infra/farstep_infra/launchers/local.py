"""Processes on this machine.

A child says on standard output, in one JSON line, when it is ready; everything it writes goes to its log.
Its standard input is a pipe held open here, and it is on a leash: so none outlives this process, however this
process dies and whatever the child is doing then. None can be adopted by the next control plane, therefore.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from farstep_infra.launchers.base import STOP_GRACE_S, LaunchFailed, ProcessSpec, State
from farstep_infra.launchers.logs import MAX_LOG_BYTES, FileLog, last_lines
from farstep_infra.launchers.ports import is_free
from farstep_serving.leash import leashed

log = logging.getLogger(__name__)

_EPITAPH_LINES = 12
_EPITAPH_BYTES = 4000
_LAST_WORDS_S = 1.0


def torch_environment() -> dict[str, str]:
    """Settings for torch processes that share this machine; what the user has set comes first.

    Passive waiting keeps one process from spinning on the cores of another (3.5 × faster with two of them).
    Each gets half the cores: trainer and sampler work at once in all but the simplest loops, and small models
    lose more to the meeting of threads than they gain (the demo takes 37 s with one each on two cores, 47 s with two).
    """
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(max(1, num_cores // 2))}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


class LocalLauncher:
    """Children of this process; must be used on one thread that lives as long as they should.

    Args:
        logs: the directory of their logs, one `<name>.log` each.
        host: the address that they listen on.
        max_log_bytes: of one file; there are two for each name.
    """

    def __init__(self, logs: Path, *, host: str, max_log_bytes: int = MAX_LOG_BYTES) -> None:
        self._logs = logs
        self._host = host
        self._max_log_bytes = max_log_bytes
        self._names: set[str] = set()

    async def start(self, spec: ProcessSpec) -> LocalProcess:
        """Raises:
        LaunchFailed: the program is not there, the log cannot be written, or one of its ports is another's.
        """
        for purpose, port in spec.ports.items():
            if not is_free(self._host, port):
                raise LaunchFailed(
                    f"{spec.name} needs port {port} of {self._host} for its {purpose} server, as before, "
                    "and another process has taken it"
                )
        self._names.add(spec.name)
        return await LocalProcess.start(spec, log=self.log(spec.name))

    async def adopt(self, spec: ProcessSpec) -> LocalProcess | None:
        return None

    def log(self, name: str) -> FileLog:
        return FileLog(self._logs / f"{name}.log", self._max_log_bytes)

    async def trim_logs(self) -> None:
        for name in self._names:
            try:
                await asyncio.to_thread(self.log(name).trim)
            except OSError as error:
                log.warning("the log of %s cannot be shortened: %s", name, error)


class LocalProcess:
    """One child. Made by `start`; ends by itself or by `stop`."""

    def __init__(self, name: str, *, log: BinaryIO) -> None:
        self.name = name
        self.log_path = Path(log.name)
        self.started_at = time.time()
        self._log = log
        self._log_start = log.tell()
        self._stop_requested = False
        self._output = _Output(on_line=self._take_line)
        self._announced: asyncio.Future[Mapping[str, str] | None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls, spec: ProcessSpec, *, log: FileLog) -> LocalProcess:
        """Starts it with exactly its environment, its log appended to; raises LaunchFailed."""
        program = shutil.which(spec.argv[0], path=spec.env.get("PATH"))
        if program is None:
            raise LaunchFailed(f"cannot start {spec.name}: there is no program {spec.argv[0]}")
        try:
            with suppress(FileNotFoundError):
                log.trim()
            file = _open_log(log.path)
        except OSError as error:
            raise LaunchFailed(f"cannot write the log of {spec.name}: {error}") from error
        process = cls(spec.name, log=file)
        try:
            await process._spawn(leashed([program, *spec.argv[1:]]), spec.env)
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                raise LaunchFailed(f"cannot start {spec.name}: {error}") from error
            raise
        return process

    async def _spawn(self, argv: list[str], env: Mapping[str, str]) -> None:
        loop = asyncio.get_running_loop()
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we stop children in order.
        self._transport, _ = await loop.subprocess_exec(
            lambda: self._output, *argv, stdin=PIPE, stdout=PIPE, stderr=self._log, env=env, start_new_session=True
        )
        self.pid = self._transport.get_pid()
        self._watch_task = asyncio.create_task(self._watch(), name=f"watch-{self.name}")

    @property
    def state(self) -> State:
        if self._transport.get_returncode() is not None:
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

    async def ended(self) -> None:
        """Returns when it has, and what it started in its own process group has been killed."""
        await asyncio.wait([self._watch_task])

    async def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Asks the process to end, and kills it and its own children if it has not in `grace_s` seconds."""
        if self._transport.get_returncode() is None:
            self._stop_requested = True
            if grace_s > 0:
                with suppress(ProcessLookupError):
                    self._transport.terminate()
                await asyncio.wait([self._watch_task], timeout=grace_s)
            self._kill_group()
        await self.ended()

    def epitaph(self) -> str:
        """How the process ended, for people."""
        code = self._transport.get_returncode()
        how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return f"{self.name} ended {how}{self._log_tail()}"

    async def _watch(self) -> None:
        try:
            await self._output.process_ended.wait()
            self._kill_group()
            # What it still wrote is read; a grandchild that left the group may hold the pipe open for ever.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._output.closed.wait(), _LAST_WORDS_S)
        finally:
            self._transport.close()
            self._log.close()
            if not self._announced.done():
                self._announced.set_result(None)

    def _take_line(self, line: bytes) -> None:
        announcement = None if self._announced.done() else _announcement(line)
        if announcement is not None:
            self._announced.set_result(announcement)
        elif not self._log.closed:
            with suppress(OSError):  # a full disk must not stop us from reading on
                self._log.write(line)
                self._log.flush()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _log_tail(self) -> str:
        lines = last_lines(self.log_path, _EPITAPH_LINES, start=self._log_start, max_bytes=_EPITAPH_BYTES)
        where = f"; its log is {self.log_path}"
        if not lines:
            return where
        return f"{where} and ends with:\n" + b"".join(lines).decode(errors="replace").rstrip("\n")


def _open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    log = open(path, "ab")  # noqa: SIM115 - closed by the watch task
    log.seek(0, os.SEEK_END)
    return log


class _Output(asyncio.SubprocessProtocol):
    """Lines of any length, the last one whether or not it ends. Death is told at once, the end of output apart."""

    def __init__(self, *, on_line: Callable[[bytes], None]) -> None:
        self.process_ended = asyncio.Event()
        self.closed = asyncio.Event()
        self._on_line = on_line
        self._rest = b""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(line + b"\n")

    def process_exited(self) -> None:
        self.process_ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._on_line(self._rest + b"\n")
        self.closed.set()


def _announcement(line: bytes) -> Mapping[str, str] | None:
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    if not isinstance(facts, dict) or facts.get("event") != "ready" or not facts.get("url"):
        return None
    return {key: str(value) for key, value in facts.items()}
