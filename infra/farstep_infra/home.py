"""The home directory of a local installation: where its key, database, store, logs and lock lie.

`local.json` says which control plane runs now and is there only while it does; `api_key` stays, so that
a key given to a program works after a restart too. Both are readable by their owner alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from farstep_infra.store.durable import replace_file
from farstep_serving.keys import make_key

_PRIVATE = 0o600


@dataclass(frozen=True, slots=True)
class Home:
    """`<directory>/{local.json, api_key, port, control.db, store/, logs/, journals/, up.lock}`."""

    directory: Path

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def journals(self) -> Path:
        return self.directory / "journals"

    @property
    def database(self) -> Path:
        return self.directory / "control.db"

    @property
    def local_file(self) -> Path:
        return self.directory / "local.json"

    def prepare(self) -> None:
        """Makes the directories.

        Raises:
            SystemExit: they cannot be made.
        """
        try:
            for directory in (self.directory, self.store, self.logs):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(f"cannot use {self.directory} as home: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other control plane off this home for as long as the block lasts.

        Raises:
            SystemExit: one is there already.
        """
        with open(self.directory / "up.lock", "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                running = self._local() or {}
                where = f" at {running['base_url']} (process {running['pid']})" if running else ""
                raise SystemExit(
                    f"a control plane is running in {self.directory} already{where}; "
                    "stop it, or choose another directory with --home"
                ) from error
            yield

    def api_key(self) -> str:
        """The key of this home, made on first use."""
        path = self.directory / "api_key"
        with suppress(FileNotFoundError):
            if key := path.read_text().strip():
                return key
        key = make_key()
        replace_file(path, key.encode(), mode=_PRIVATE)
        return key

    def last_port(self) -> int:
        """Of the control plane that was here before; 0 where there was none."""
        try:
            return int((self.directory / "port").read_text())
        except (OSError, ValueError):
            return 0

    def remember_port(self, port: int) -> None:
        replace_file(self.directory / "port", str(port).encode(), mode=_PRIVATE)

    def write_local(self, *, base_url: str, api_key: str) -> None:
        """Tells clients on this machine how to connect."""
        content = {"base_url": base_url, "api_key": api_key, "pid": os.getpid()}
        replace_file(self.local_file, json.dumps(content).encode(), mode=_PRIVATE)

    def remove_local(self) -> None:
        """Takes that back, if it is still this process that it speaks of."""
        running = self._local()
        if running is not None and running["pid"] == os.getpid():
            self.local_file.unlink(missing_ok=True)

    def _local(self) -> dict[str, object] | None:
        try:
            content = json.loads(self.local_file.read_bytes())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and {"base_url", "pid"} <= content.keys() else None
