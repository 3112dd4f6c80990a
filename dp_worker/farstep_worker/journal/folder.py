"""The folder of a journal: one process's at a time, of one model, with a reserve for a disk that fills up.

lock~                   held as long as the process lives
reserve~                room that is given up when the disk is full, so that outcomes can still be written
journal.sqlite          (and its WAL)
bodies/                 what is too large for a table
snapshots/              runs, as a checkpoint store
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from farstep_proto.errors import Conflict, Internal, StorageFull

log = logging.getLogger(__name__)

_RESERVE_BYTES = 16 << 20
_RESERVE_SHARE = 8  # of a small disk, an eighth


class JournalFolder:
    """Made by `locked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bodies = path / "bodies"
        self.snapshots = path / "snapshots"
        self.database = path / "journal.sqlite"
        self._reserve = path / "reserve~"
        total = self._statvfs().f_blocks * self._statvfs().f_frsize
        self.reserve_bytes = min(_RESERVE_BYTES, total // _RESERVE_SHARE)

    @property
    def free_bytes(self) -> int:
        found = self._statvfs()
        return found.f_bavail * found.f_frsize

    def check_room(self, num_bytes: int) -> None:
        """Refuses what would leave less than the reserve (which is beside this) free.

        Raises:
            StorageFull: saying how much is free, and where.
        """
        free = self.free_bytes
        if free < 2 * num_bytes + self.reserve_bytes // 4:
            raise StorageFull(
                f"the disk of the journal is full: {free >> 10} KiB are free at {self.path}, too few for "
                f"{num_bytes} bytes; nothing was taken",
                hint="make room there, or start the trainer with --journal on a larger disk",
            )

    def keep_reserve(self) -> bool:
        """Takes the reserve, where there is room; whether it is there."""
        try:
            with self._reserve.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, self.reserve_bytes)
        except OSError as error:
            self.release_reserve()
            log.warning("no reserve for the journal at %s: %s", self.path, error.strerror)
            return False
        return True

    def release_reserve(self) -> None:
        self._reserve.unlink(missing_ok=True)

    def _statvfs(self) -> os.statvfs_result:
        return os.statvfs(self.path)


@contextmanager
def locked(path: Path) -> Iterator[JournalFolder]:
    """The folder, made where it is missing, for as long as the block.

    Raises:
        Conflict: another process has it.
        Internal: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / "lock~").open("ab")
    except OSError as error:
        raise Internal(
            f"the journal at {path} cannot be opened: {error.strerror}", hint="choose another place with --journal"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise Conflict(
                f"the journal at {path} is in use by another trainer",
                field="--journal",
                hint="give each trainer a journal of its own: --journal DIR",
            ) from error
        yield JournalFolder(path)
