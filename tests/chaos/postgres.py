"""A PostgreSQL server of the suite's own: on a free port of loopback, for whoever asks; it can be crashed and started.

Its programs are looked for on the path; as root it runs as the user `postgres`, because it refuses to run as root.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from pathlib import Path

_USER = "postgres"
_START_S = 60


class Postgres:
    """In a directory of its own, which must not exist."""

    def __init__(self, directory: Path) -> None:
        self._data = directory
        self._port = _free_port()
        directory.mkdir(mode=0o700)
        self._user = _USER if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(directory, self._user)
        self._run("initdb", f"--pgdata={directory}", "--auth=trust", f"--username={_USER}", "--no-sync")
        self._start()

    @classmethod
    def is_installed(cls) -> bool:
        """With a user that it can run as."""
        try:
            pwd.getpwnam(_USER)
        except KeyError:
            return False
        return all(shutil.which(program) for program in ("initdb", "pg_ctl"))

    @property
    def url(self) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self._port}/postgres"

    def restart(self, *, away_s: float) -> None:
        """As after a crash: connections are cut, what was not committed is gone, the log is replayed."""
        self.stop()
        time.sleep(away_s)
        self._start()

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate", f"--pgdata={self._data}")

    def _start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._data}"
        log = f"--log={self._data / 'server.log'}"
        self._run("pg_ctl", "start", "--wait", f"--timeout={_START_S}", f"--pgdata={self._data}", log, "-o", options)

    def _run(self, *command: str) -> None:
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, user=self._user, cwd=self._data
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
