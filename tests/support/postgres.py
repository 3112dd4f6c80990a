"""A PostgreSQL of the tests' own: a cluster in a temporary directory, on a socket there, without a port."""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_ACCOUNT = "postgres"  # PostgreSQL refuses to run as root
_START_S = 60.0


def binary(name: str) -> str | None:
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


class Cluster:
    """Started at once; `stop`, `kill` and `start` are for tests of what happens then."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._names = itertools.count()
        self._account = {"user": _ACCOUNT, "group": _ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}
        if self._account:
            account = pwd.getpwnam(_ACCOUNT)
            os.chown(directory, account.pw_uid, account.pw_gid)
        argv = [_found("initdb"), "--pgdata", str(directory / "data"), "--auth=trust", "--username=farstep"]
        argv += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(argv, check=True, capture_output=True, cwd=directory, **self._account)
        self.start()

    def start(self) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "fsync": "off",  # processes are killed here, never the machine
            "max_connections": "60",
            "shared_buffers": "16MB",
        }
        argv = [_found("postgres"), "-D", str(self.directory / "data")]
        argv += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=self.directory, **self._account)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, with its connections cut, and nothing lost."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Without a chance to write anything more; it recovers at the next start."""
        self._end(signal.SIGQUIT)

    def database(self, *, template: str = "template1") -> str:
        """The URL of a new database."""
        name = f"db{next(self._names)}"
        self.run(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://farstep@/{name}?host={self.directory}"

    def run(self, statement: str) -> None:
        async def execute() -> None:
            import asyncpg

            connection = await asyncpg.connect(user="farstep", database="postgres", host=str(self.directory))
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(execute())

    def _answers(self) -> bool:
        argv = [_found("pg_isready"), "--host", str(self.directory), "--quiet"]
        return subprocess.run(argv, check=False).returncode == 0

    def _end(self, how: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(timeout=60)


@contextmanager
def cluster() -> Iterator[Cluster]:
    if binary("initdb") is None or binary("postgres") is None:
        if os.environ.get("FARSTEP_TEST_POSTGRES") == "required":
            raise FileNotFoundError("PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="farstep-pg-") as directory:
        running = Cluster(Path(directory))
        try:
            yield running
        finally:
            running.stop()  # with all its processes, so that nobody writes here any more


def _found(name: str) -> str:
    found = binary(name)
    assert found is not None, f"PostgreSQL's {name} is missing"
    return found
