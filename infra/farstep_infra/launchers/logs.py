"""The log of one process name over all its lives: a file and the one before it, each bounded.

Children write to the file themselves, so that nothing they say depends on this process keeping up, or being alive.
So it cannot be renamed under them: when it has grown, it is copied aside and emptied. A line that is written between
the last look and the emptying, microseconds, is lost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

MAX_LOG_BYTES = 16 << 20
MAX_TAIL_LINES = 100_000
_LOOK_EVERY_S = 0.2
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class FileLog:
    """`<name>.log`, and `<name>.log.1` with what was before."""

    path: Path
    max_bytes: int = MAX_LOG_BYTES

    @property
    def location(self) -> str:
        return str(self.path)

    @property
    def _before(self) -> Path:
        return self.path.with_name(self.path.name + ".1")

    def trim(self) -> None:
        """Moves the file's content aside where it has outgrown its bound; raises OSError."""
        if self.path.stat().st_size <= self.max_bytes:
            return
        with open(self.path, "rb") as log, open(self._before, "wb") as before:
            shutil.copyfileobj(log, before)
            os.truncate(self.path, 0)

    async def tail(self, num_lines: int) -> bytes:
        """The last lines, of the file before as well if there are not enough in this one; b"" where there is none."""
        return await asyncio.to_thread(self._tail, num_lines)

    async def follow(self, num_lines: int) -> AsyncIterator[bytes]:
        """The last lines, then whatever is written, for ever; b"" now and then where nothing is."""
        position = _size(self.path)
        yield await self.tail(num_lines)
        while True:
            data, position = await asyncio.to_thread(_read_from, self.path, position)
            yield data
            if not data:
                await asyncio.sleep(_LOOK_EVERY_S)

    def _tail(self, num_lines: int) -> bytes:
        wanted = min(num_lines, MAX_TAIL_LINES)
        lines = last_lines(self.path, wanted)
        if len(lines) < wanted:
            lines = [*last_lines(self._before, wanted - len(lines)), *lines]
        return b"".join(lines)


def last_lines(path: Path, num_lines: int, *, start: int = 0, max_bytes: int = MAX_LOG_BYTES) -> list[bytes]:
    """The last lines of a file from byte `start` on, with their ends; none where it cannot be read."""
    if num_lines < 1:
        return []
    found = b""
    try:
        with open(path, "rb") as log:
            position = log.seek(0, os.SEEK_END)
            start = max(start if start <= position else 0, position - max_bytes)
            size = _CHUNK_BYTES
            while position > start and found.count(b"\n") <= num_lines:
                size = min(2 * size, position - start)
                position = log.seek(position - size)
                found = log.read(size) + found
    except OSError:
        return []
    return found.splitlines(keepends=True)[-num_lines:]


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    """What is there from a position on, or from the start where the file has become shorter."""
    try:
        with open(path, "rb") as log:
            if log.seek(0, os.SEEK_END) < position:
                position = 0
            log.seek(position)
            data = log.read(_CHUNK_BYTES)
    except OSError:
        return b"", position
    return data, position + len(data)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
