"""Checkpoints as directories: `<root>/<run_id>/<kind>/<name>/` holds the files as they are, and the manifest.

A writer fills a directory beside the final one and renames it; an overwrite moves the old one aside first, where
readers still find it. Names cannot hold a `~`, so whatever has one is the store's own and never a checkpoint.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from farstep_infra.store.backing import Found
from farstep_infra.store.blobs import Blobs, FileBlobs
from farstep_infra.store.durable import clear_disk_errors, replace_file, sync_directory, write_file
from farstep_infra.store.manifest import FILE_NAME, Manifest
from farstep_proto.names import KINDS, CheckpointPath, Kind

_ASIDE = "~was"  # the old checkpoint during an overwrite
_LOCK = "lock~"


class Directories:
    """A `Backing` under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, path: CheckpointPath) -> Found | None:
        final = self._directory(path)
        # The last look is for an overwrite that ended between the first two.
        for directory in (final, _aside(final), final):
            try:
                data = (directory / FILE_NAME).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            return Found(data, str(directory), tag="")
        return None

    def is_incomplete(self, path: CheckpointPath) -> bool:
        return self._directory(path).is_dir()

    def read_file(self, found: Found, name: str) -> bytes:
        return (Path(found.place) / name).read_bytes()

    def put(
        self,
        path: CheckpointPath,
        files: Mapping[str, bytes],
        manifest: Manifest,
        *,
        may_replace: Callable[[Found | None], None],
    ) -> None:
        final = self._directory(path)
        may_replace(self.find(path))
        filling = _beside(final)
        with clear_disk_errors(f"checkpoint {path}"):
            try:
                _fill(filling, files, manifest)
                with self._locked(path.run_id):
                    may_replace(self.find(path))
                    _put_in_place(filling, final)
            except BaseException:
                shutil.rmtree(filling, ignore_errors=True)
                raise

    def change(self, path: CheckpointPath, changed: Callable[[Found | None], bytes]) -> None:
        changed(self.find(path))  # a run of which there is nothing gets no directory
        with clear_disk_errors(f"checkpoint {path}"), self._locked(path.run_id):
            found = self.find(path)
            data = changed(found)
            assert found is not None
            replace_file(Path(found.place) / FILE_NAME, data)

    def remove(self, path: CheckpointPath, *, only_if: Callable[[Found | None], bool]) -> bool:
        if not self._directory(path).parent.is_dir():
            return False
        with clear_disk_errors(f"the removal of checkpoint {path}"), self._locked(path.run_id):
            return only_if(self.find(path)) and self._remove(path)

    def names(self, run_id: str, kind: Kind) -> list[str]:
        names = {name.removesuffix(_ASIDE) for name in _entries(self.root / run_id / kind)}
        return sorted(name for name in names if "~" not in name)

    def runs(self) -> list[str]:
        return [name for name in _entries(self.root) if "~" not in name]

    def sweep_abandoned(self, run_id: str, *, before: float) -> int:
        num_removed = 0
        for kind in KINDS:
            for name in _entries(self.root / run_id / kind):
                directory = self.root / run_id / kind / name
                if "~" not in name or name.endswith(_ASIDE):
                    continue
                if directory.stat().st_mtime < before:
                    shutil.rmtree(directory, ignore_errors=True)
                    num_removed += 1
        return num_removed

    def private(self, folder: str) -> Blobs:
        return FileBlobs(self.root / folder)

    def file_path(self, found: Found, name: str) -> Path | None:
        return Path(found.place) / name

    def signed_url(self, found: Found, name: str, *, ttl_s: int) -> str | None:
        return None

    def _directory(self, path: CheckpointPath) -> Path:
        return self.root / path.run_id / path.kind / path.name

    @contextmanager
    def _locked(self, run_id: str) -> Iterator[None]:
        """One writer at a time moves a run's directories, in this process and in others."""
        directory = self.root / run_id
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / _LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove(self, path: CheckpointPath) -> bool:
        final = self._directory(path)
        was_there = False
        for directory in (_aside(final), final):
            if directory.exists():
                leaving = _beside(final)  # so that no reader sees half of it
                os.rename(directory, leaving)
                shutil.rmtree(leaving)
                was_there = True
        return was_there


def _fill(directory: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    directory.mkdir(parents=True)
    for name, data in files.items():
        write_file(directory / name, data)
    write_file(directory / FILE_NAME, manifest.to_json())
    sync_directory(directory)


def _put_in_place(filling: Path, final: Path) -> None:
    """Makes `filling` the checkpoint `final`; a reader finds the old one or the new one at every instant."""
    aside = _aside(final)
    if final.exists():
        if aside.exists():  # an earlier overwrite was killed after its last rename
            shutil.rmtree(aside)
        os.rename(final, aside)
    os.rename(filling, final)
    for directory in final.parents[:3]:  # kind, run, root: each may be new
        sync_directory(directory)
    shutil.rmtree(aside, ignore_errors=True)


def _aside(final: Path) -> Path:
    return final.with_name(final.name + _ASIDE)


def _beside(final: Path) -> Path:
    return final.with_name(f"{final.name}~{secrets.token_hex(8)}")


def _entries(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
