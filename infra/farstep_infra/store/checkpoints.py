"""The checkpoint store: named sets of files under one directory, each whole or absent.

`<root>/<run_id>/<kind>/<name>/` holds a checkpoint's files as they are, so that plain `peft` loads the
directory, and `manifest.json` with the sha256 of each. It knows nothing of tensors: files are bytes.

Invariant: what `read` gives is exactly what one `write` was given. A writer fills a directory beside the
final one and renames it; an overwrite moves the old one aside first, where readers still find it.
Names cannot hold a `~`, so whatever has one is the store's own and never a checkpoint.
"""

from __future__ import annotations

import builtins
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from farstep_infra.store.durable import clear_disk_errors, sync_directory, write_file
from farstep_infra.store.manifest import FILE_NAME, JSON, Manifest, StoredFile
from farstep_proto.errors import Conflict, InvalidInput, NotFound
from farstep_proto.names import CheckpointPath, Kind, check_name, check_run_id

__all__ = ["JSON", "CheckpointStore", "Manifest", "StoredFile"]

log = logging.getLogger(__name__)

_KINDS: tuple[Kind, ...] = ("weights", "sampler_weights")
_ASIDE = "~was"  # the old checkpoint during an overwrite
_LOCK = "lock~"
_ABANDONED_S = 86_400.0  # a writer's directory of this age has no writer any more
_READ_ATTEMPTS = 5


class CheckpointStore:
    """Checkpoints of all runs under `root`. Any number of processes may share one root; calls block."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._clock = clock

    @property
    def root(self) -> Path:
        """The directory; published policies are beside the checkpoints (`farstep_infra.store.policies`)."""
        return self._root

    def write(
        self,
        path: CheckpointPath,
        files: Mapping[str, bytes],
        meta: Mapping[str, JSON],
        *,
        overwrite: bool = False,
        ttl_seconds: float | None = None,
    ) -> Manifest:
        """Keeps `files` as the checkpoint `path`, all or nothing.

        Raises:
            Conflict: it exists, and `overwrite` is not set.
            InvalidInput: a name that is none, no files, or a `ttl_seconds` that is not positive.
            Internal: the disk is full or refuses; nothing is left behind.
        """
        final = self._directory(path)
        manifest = self._plan(path, files, meta, ttl_seconds)
        if not overwrite:
            self._refuse_existing(path)
        filling = _beside(final)
        with clear_disk_errors(f"checkpoint {path}"):
            try:
                self._fill(filling, files, manifest)
                with self._locked(path.run_id):
                    if not overwrite:
                        self._refuse_existing(path)
                    _put_in_place(filling, final)
            except BaseException:
                shutil.rmtree(filling, ignore_errors=True)
                raise
        return manifest

    def read(self, path: CheckpointPath) -> tuple[Manifest, dict[str, bytes]]:
        """The manifest and every file's content, checked against its sha256.

        Raises:
            NotFound: no such checkpoint, an expired one, or one without its manifest.
            InvalidInput: a file or the manifest is damaged; the message names it.
        """
        for _ in range(_READ_ATTEMPTS):
            located = self._locate(path)
            try:
                return located[0], _read_files(*located)
            except InvalidInput:
                if self._locate(path) == located:  # not overwritten meanwhile: really damaged
                    raise
        raise Conflict(f"checkpoint {path} is being overwritten again and again", field="path")

    def manifest(self, path: CheckpointPath) -> Manifest:
        """Raises as `read` does, but looks at no other file."""
        return self._locate(path)[0]

    def list(self, run_id: str) -> builtins.list[Manifest]:
        """Every checkpoint of a run, oldest first; damaged ones are left out with a warning in the log."""
        check_run_id(run_id)
        found: list[Manifest] = []
        for path in self._paths(run_id):
            try:
                found.append(self.manifest(path))
            except NotFound:
                continue
            except InvalidInput as error:
                log.warning("%s", error.message)
        return sorted(found, key=lambda manifest: (manifest.created_at, manifest.path.checkpoint_id))

    def delete(self, path: CheckpointPath) -> None:
        """Removes a checkpoint, also a damaged one.

        Raises:
            NotFound: there is nothing of that name.
        """
        missing = NotFound(f"no checkpoint {path}", field="path")
        if not self._directory(path).parent.is_dir():
            raise missing
        with clear_disk_errors(f"the removal of checkpoint {path}"), self._locked(path.run_id):
            if not self._remove(path):
                raise missing

    def file_path(self, path: CheckpointPath, file_name: str) -> Path:
        """Where one file of a checkpoint lies.

        Raises:
            NotFound: no such checkpoint, or no such file in it.
        """
        manifest, directory = self._locate(path)
        if file_name not in manifest.files:
            raise NotFound(f"checkpoint {path} has no file {file_name!r}", field="file")
        return directory / file_name

    def sweep(self) -> int:
        """Removes expired checkpoints and what writers left when they were killed; how many it removed."""
        num_removed = 0
        for run_id in _entries(self._root):
            if "~" in run_id:
                continue
            num_removed += self._sweep_abandoned(run_id)
            for path in self._paths(run_id):
                num_removed += self._sweep_expired(path)
        return num_removed

    def _plan(
        self, path: CheckpointPath, files: Mapping[str, bytes], meta: Mapping[str, JSON], ttl_seconds: float | None
    ) -> Manifest:
        if not files:
            raise InvalidInput("a checkpoint has at least one file", field="files")
        if FILE_NAME in files:
            raise InvalidInput(f"{FILE_NAME} is written by the store", field="files")
        if ttl_seconds is not None and not ttl_seconds > 0:
            raise InvalidInput(f"{ttl_seconds} is not a positive number of seconds", field="ttl_seconds")
        stored = {check_name(name, field="files"): StoredFile.of(data) for name, data in files.items()}
        now = self._clock()
        return Manifest(path, now, stored, None if ttl_seconds is None else now + ttl_seconds, dict(meta))

    def _refuse_existing(self, path: CheckpointPath) -> None:
        try:
            self.manifest(path)
        except NotFound:
            return
        except InvalidInput:
            pass  # damaged, but there: not ours to replace unasked
        raise Conflict(
            f"checkpoint {path} exists", field="name", hint="choose another name, or pass overwrite=True to replace it"
        )

    @staticmethod
    def _fill(directory: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
        directory.mkdir(parents=True)
        for name, data in files.items():
            write_file(directory / name, data)
        write_file(directory / FILE_NAME, manifest.to_json())
        sync_directory(directory)

    def _locate(self, path: CheckpointPath) -> tuple[Manifest, Path]:
        found = self._find(path)
        if found is None:
            if self._directory(path).is_dir():
                raise NotFound(f"checkpoint {path} is incomplete: it has no manifest", field="path")
            raise NotFound(f"no checkpoint {path}", field="path")
        if found[0].is_expired(self._clock()):
            raise NotFound(f"checkpoint {path} has expired", field="path")
        return found

    def _find(self, path: CheckpointPath) -> tuple[Manifest, Path] | None:
        final = self._directory(path)
        # The last look is for an overwrite that ended between the first two.
        for directory in (final, _aside(final), final):
            try:
                data = (directory / FILE_NAME).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            return Manifest.from_json(data, path=path), directory
        return None

    def _paths(self, run_id: str) -> Iterator[CheckpointPath]:
        for kind in _KINDS:
            names = {name.removesuffix(_ASIDE) for name in _entries(self._root / run_id / kind)}
            yield from (CheckpointPath(run_id, kind, name) for name in sorted(names) if "~" not in name)

    def _directory(self, path: CheckpointPath) -> Path:
        if path.kind not in _KINDS:
            raise InvalidInput(f"{path.kind!r} is no kind of checkpoint", field="path")
        return self._root / check_run_id(path.run_id) / path.kind / check_name(path.name)

    @contextmanager
    def _locked(self, run_id: str) -> Iterator[None]:
        """One writer at a time moves a run's directories, in this process and in others."""
        directory = self._root / check_run_id(run_id)
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

    def _sweep_expired(self, path: CheckpointPath) -> bool:
        with self._locked(path.run_id):
            try:
                found = self._find(path)
            except InvalidInput:
                return False  # damaged: a person should look at it
            return found is not None and found[0].is_expired(self._clock()) and self._remove(path)

    def _sweep_abandoned(self, run_id: str) -> int:
        num_removed = 0
        for kind in _KINDS:
            for name in _entries(self._root / run_id / kind):
                directory = self._root / run_id / kind / name
                if "~" not in name or name.endswith(_ASIDE):
                    continue
                if directory.stat().st_mtime < self._clock() - _ABANDONED_S:
                    shutil.rmtree(directory, ignore_errors=True)
                    num_removed += 1
        return num_removed


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


def _read_files(manifest: Manifest, directory: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        try:
            data = (directory / name).read_bytes()
        except FileNotFoundError as error:
            raise _damaged(manifest, name, "is missing") from error
        if len(data) != expected.size_bytes:
            raise _damaged(manifest, name, f"has {len(data)} bytes instead of {expected.size_bytes}")
        if StoredFile.of(data) != expected:
            raise _damaged(manifest, name, "has another sha256 than the manifest says")
        files[name] = data
    return files


def _damaged(manifest: Manifest, name: str, how: str) -> InvalidInput:
    return InvalidInput(
        f"checkpoint {manifest.path} is damaged: {name} {how}", field="path", hint="load another checkpoint of the run"
    )


def _entries(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
