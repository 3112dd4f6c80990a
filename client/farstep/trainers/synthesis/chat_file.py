"""`ChatFile`: what chats came to, a JSON object a line, each on the disk before the next is begun.

Half a line at its end, of a process that was killed, is removed; anything else that is no line of ours is an error.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

from farstep.trainers.errors import DataError, TrainerError

_FIELDS: Mapping[str, type] = {"key": str, "text": str, "error": str, "stop_reason": str, "attempts": int}


class ChatFile:
    """Held by one process at a time. Without a path it keeps nothing."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path).expanduser()
        self.lines: list[dict[str, Any]] = []
        self._file: FileIO | None = None
        self._trouble: OSError | None = None

    def __enter__(self) -> Self:
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a+b", buffering=0)
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                self._lock(self._file)
                self._read(self._file)
            except BaseException:
                self._file.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """Raises TrainerError where the disk does not take it, and from then on: nothing comes after half a line."""
        if self._file is None:
            return
        if self._trouble is not None:
            raise self._unwritable(self._trouble) from self._trouble
        text = json.dumps(line).encode() + b"\n"
        try:
            if self._file.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            self._trouble = error
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> TrainerError:
        return TrainerError(f"{self.path} cannot be written: {error.strerror}", field="path", stage="synthesis")

    def _lock(self, file: FileIO) -> None:
        """Not on systems without `fcntl`."""
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainerError(f"another process writes to {self.path}", field="path", stage="synthesis") from error

    def _read(self, file: FileIO) -> None:
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
        for number, text in enumerate(content[:whole].splitlines(), start=1):
            self.lines.append(self._line(text, number))

    def _line(self, text: bytes, number: int) -> dict[str, Any]:
        try:
            line = json.loads(text)
            if isinstance(line, dict) and all(isinstance(line.get(name), kind) for name, kind in _FIELDS.items()):
                return line
        except (ValueError, RecursionError):
            pass
        raise DataError(f"line {number} is none of ours", field=str(self.path), hint="move the file away")
