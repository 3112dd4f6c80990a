"""Files that are whole or not there: written beside their place, fsynced, renamed.

It knows bytes and directories, nothing of checkpoints. Invariant: after a crash at any instant a path
holds its old content or its new one, never a part.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from farstep_proto.errors import ApiError, Internal, StorageFull

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Creates a new file and has it reach the disk before returning."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Puts `data` at `path`, whether or not a file is there; a reader sees the old or the new one."""
    temporary = path.with_name(f"{path.name}~{secrets.token_hex(8)}")
    try:
        write_file(temporary, data, mode=mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Has a directory's entries (names made, renamed, removed) reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def clear_disk_errors(what: str) -> Iterator[None]:
    """Turns a failing disk into an error that says what to do.

    Raises:
        StorageFull, Internal: in place of any `OSError` from the block.
    """
    try:
        yield
    except OSError as error:
        raise _disk_error(what, error) from error


def _disk_error(what: str, error: OSError) -> ApiError:
    if error.errno in _NO_SPACE:
        return StorageFull(
            f"no space left on the server's disk for {what}; nothing was kept of it",
            hint="delete checkpoints that are not needed, or give the store a larger disk, and try again",
        )
    return Internal(f"the server cannot write {what}: {error.strerror}", hint="look at the store's disk and its rights")
