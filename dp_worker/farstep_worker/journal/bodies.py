"""What is too large for a table: one file each, whole or not there. The table names it.

Invariant: a file is on the disk before the row that names it, and leaves after that row.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from farstep_infra.store.durable import sync_directory, write_file

MOST_IN_TABLE = 64 << 10


class Bodies:
    """On the thread that writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """The new file's name; its entry reaches the disk with the next `sync`.

        A file without a row that names it is nobody's, so that it needs no temporary name.
        """
        name = secrets.token_hex(16)
        try:
            write_file(self._folder / name, data)
        except BaseException:
            (self._folder / name).unlink(missing_ok=True)
            raise
        return name

    def sync(self) -> None:
        sync_directory(self._folder)

    def get(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self._folder / name).read_bytes()

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def keep_only(self, names: set[str]) -> None:
        """Removes what no row names: of submissions that were never acknowledged."""
        self.remove(name for name in os.listdir(self._folder) if name not in names)
