"""A file system of a known size, for a home: what it takes to have a disk that is full, and to make room again.

It needs root, to mount a tmpfs. Where it cannot, `available` says so and the suite goes on without full disks.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_MIB = 2048
_BALLAST = "ballast"
_STEP = 1 << 20


class Room:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def mounted(cls, directory: Path) -> Room | None:
        """None where mounting is not allowed here; the directory is then an ordinary one."""
        directory.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "farstep-chaos", str(directory)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
            return None
        return cls(directory)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.directory)], check=True)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is left inside the block; afterwards there is room as before."""
        ballast = self.directory / _BALLAST
        try:
            _fill(ballast)
            yield
        finally:
            ballast.unlink()


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        size = _STEP
        while size:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
            except OSError:
                size //= 2
