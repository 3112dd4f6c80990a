"""The checkpoint store: named sets of files, each whole or absent, in a directory or in a bucket.

A manifest with the sha256 of each file is written last; without it there is no checkpoint. The store knows nothing
of tensors: files are bytes. Where they lie is its `Backing`'s to know.

Invariant: what `read` gives is exactly what one `write` was given.
"""

from __future__ import annotations

import builtins
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from farstep_infra.store.backing import ABANDONED_S, Backing, Found, all_paths
from farstep_infra.store.blobs import Blobs, open_s3
from farstep_infra.store.directories import Directories
from farstep_infra.store.manifest import FILE_NAME, JSON, Manifest, StoredFile
from farstep_infra.store.objects import Objects
from farstep_proto.errors import Conflict, InvalidInput, NotFound
from farstep_proto.names import KINDS, CheckpointPath, check_name, check_run_id

__all__ = ["JSON", "CheckpointStore", "Manifest", "StoredFile", "no_checkpoint", "open_store"]

log = logging.getLogger(__name__)

# Files of an expired checkpoint stay that long: whoever sweeps may have a clock that is ahead.
CLOCK_SKEW_S = 300.0
_READ_ATTEMPTS = 5
_LOOK_AT_ONCE = 16


def open_store(place: str, *, clock: Callable[[], float] = time.time) -> CheckpointStore:
    """The store at a directory of this machine or at `s3://bucket/prefix`.

    Raises:
        InvalidInput: it is neither, or boto3 is not installed.
    """
    if "://" in place:
        return CheckpointStore(Objects(open_s3(place, field="--store")), clock=clock)
    if not place:
        raise InvalidInput("no place is named", field="--store")
    return CheckpointStore(Path(place), clock=clock)


class CheckpointStore:
    """Checkpoints of all runs. Any number of processes may share one place; calls block.

    Args:
        place: what it stands on; a path is a directory of this machine.
    """

    def __init__(self, place: Backing | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._backing: Backing = Directories(place) if isinstance(place, Path) else place
        self._clock = clock

    def private(self, folder: str) -> Blobs:
        """Blobs beside the checkpoints, in a folder whose name has a `~`, as no run's has."""
        assert "~" in folder
        return self._backing.private(folder)

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
            Internal: the disk is full or refuses, or the bucket does; nothing is left behind.
        """
        manifest = self._plan(_checked(path), files, meta, ttl_seconds)

        def may_replace(found: Found | None) -> None:
            if not overwrite:
                self._refuse_existing(path, found)

        self._backing.put(path, files, manifest, may_replace=may_replace)
        return manifest

    def read(self, path: CheckpointPath) -> tuple[Manifest, dict[str, bytes]]:
        """The manifest and every file's content, checked against its sha256.

        Raises:
            NotFound: no such checkpoint, an expired one, or one without its manifest.
            InvalidInput: a file or the manifest is damaged; the message names it.
        """
        for _ in range(_READ_ATTEMPTS):
            manifest, found = self._locate(path)
            try:
                return manifest, self._read_files(manifest, found)
            except InvalidInput:
                if self._locate(path)[1] == found:  # not overwritten meanwhile: really damaged
                    raise
        raise Conflict(f"checkpoint {path} is being overwritten again and again", field="path")

    def copy(
        self, source: CheckpointPath, to: CheckpointPath, *, project: str, ttl_seconds: float | None = None
    ) -> Manifest:
        """Keeps a checkpoint once more, for a project. Asked for again, the copy that is there is the answer.

        Raises:
            NotFound: there is no such checkpoint.
            Conflict: there is another one of that name.
            InvalidInput: it is damaged, or `ttl_seconds` is not positive.
            Internal: the disk is full or refuses, or the bucket does; nothing is left behind.
        """
        manifest, files = self.read(source)
        meta = {**manifest.meta, "project": project, "copied_from": str(source)}
        meta.pop("operation", None)  # who made the one did not make the other
        try:
            return self.write(to, files, meta, ttl_seconds=ttl_seconds)
        except Conflict:
            there = self.manifest(to)
            if (there.meta, there.files) != (meta, manifest.files):
                raise
            return there

    def manifest(self, path: CheckpointPath) -> Manifest:
        """Raises as `read` does, but looks at no other file."""
        return self._locate(path)[0]

    def project_of(self, path: CheckpointPath) -> str | None:
        """Whose a checkpoint is, also an expired one; None where there is none, or one whose manifest is damaged."""
        manifest = self._any_manifest(path)
        return None if manifest is None else manifest.project

    def may_read(self, path: CheckpointPath, project: str) -> bool:
        """Whether a checkpoint, also an expired one, is this project's or one that was made public."""
        manifest = self._any_manifest(path)
        return manifest is not None and (manifest.public or manifest.project == project)

    def is_public(self, path: CheckpointPath) -> bool:
        """Whether every project may read it; of what is not there nobody may."""
        manifest = self._any_manifest(path)
        return manifest is not None and manifest.public

    def runs(self) -> builtins.list[str]:
        """The ids of all runs that have, or had, a checkpoint."""
        return self._backing.runs()

    def list(self, run_id: str) -> builtins.list[Manifest]:
        """Every checkpoint of a run, oldest first; damaged ones are left out with a warning in the log."""
        paths = [*all_paths(self._backing, check_run_id(run_id))]
        with ThreadPoolExecutor(_LOOK_AT_ONCE) as looking:
            found = [manifest for manifest in looking.map(self._listed, paths) if manifest is not None]
        return sorted(found, key=lambda manifest: (manifest.created_at, manifest.path.checkpoint_id))

    def delete(self, path: CheckpointPath) -> None:
        """Removes a checkpoint, also a damaged or an expired one.

        Raises:
            NotFound: there is nothing of that name.
        """
        if not self._backing.remove(_checked(path), only_if=lambda found: True):
            raise no_checkpoint(path)

    def set_ttl(self, path: CheckpointPath, ttl_seconds: float | None) -> Manifest:
        """Has a checkpoint expire so many seconds from now; None: never.

        Raises:
            NotFound: no such checkpoint, or it has expired already.
            InvalidInput: `ttl_seconds` is not positive, or the manifest is damaged.
        """
        expires_at = self._expiry(ttl_seconds)
        return self._change(path, lambda manifest: dataclasses.replace(manifest, expires_at=expires_at))

    def set_public(self, path: CheckpointPath, public: bool) -> Manifest:
        """Lets every project of the installation read a checkpoint, or its own alone again.

        Raises:
            NotFound: no such checkpoint, or it has expired.
            InvalidInput: the manifest is damaged.
        """
        return self._change(path, lambda manifest: dataclasses.replace(manifest, public=public))

    def file_path(self, path: CheckpointPath, file_name: str) -> Path:
        """Where one file of a checkpoint lies on this machine.

        Raises:
            NotFound: no such checkpoint, or no such file in it, or its files lie elsewhere.
        """
        _, found = self._with_file(path, file_name)
        place = self._backing.file_path(found, file_name)
        if place is None:
            raise NotFound(f"the files of checkpoint {path} are not on this machine", field="file")
        return place

    def signed_url(self, path: CheckpointPath, file_name: str, *, ttl_s: int) -> str | None:
        """Where anybody can fetch a file for so long; None where the place of the files signs nothing itself.

        Raises:
            NotFound: no such checkpoint, or no such file in it.
        """
        _, found = self._with_file(path, file_name)
        return self._backing.signed_url(found, file_name, ttl_s=ttl_s)

    def sweep(self) -> int:
        """Removes expired checkpoints and what writers left when they were killed; how many it removed."""
        num_removed = 0
        for run_id in self._backing.runs():
            num_removed += self._backing.sweep_abandoned(run_id, before=self._clock() - ABANDONED_S)
            for path in all_paths(self._backing, run_id):
                num_removed += self._backing.remove(path, only_if=partial(self._is_over, path))
        return num_removed

    def _change(self, path: CheckpointPath, changed: Callable[[Manifest], Manifest]) -> Manifest:
        manifests: builtins.list[Manifest] = []

        def change(found: Found | None) -> bytes:
            manifests.append(changed(self._valid(path, found)))
            return manifests[-1].to_json()

        self._backing.change(_checked(path), change)
        return manifests[-1]

    def _any_manifest(self, path: CheckpointPath) -> Manifest | None:
        """Also an expired one; None where there is none, or a damaged one."""
        found = self._backing.find(_checked(path))
        if found is None:
            return None
        try:
            return Manifest.from_json(found.manifest, path=path)
        except InvalidInput:
            return None

    def _plan(
        self, path: CheckpointPath, files: Mapping[str, bytes], meta: Mapping[str, JSON], ttl_seconds: float | None
    ) -> Manifest:
        if not files:
            raise InvalidInput("a checkpoint has at least one file", field="files")
        if FILE_NAME in files:
            raise InvalidInput(f"{FILE_NAME} is written by the store", field="files")
        expires_at = self._expiry(ttl_seconds)
        stored = {check_name(name, field="files"): StoredFile.of(data) for name, data in files.items()}
        return Manifest(path, self._clock(), stored, expires_at, dict(meta))

    def _expiry(self, ttl_seconds: float | None) -> float | None:
        if ttl_seconds is None:
            return None
        if not 0 < ttl_seconds < float("inf"):
            raise InvalidInput(f"{ttl_seconds} is not a positive number of seconds", field="ttl_seconds")
        return self._clock() + ttl_seconds

    def _refuse_existing(self, path: CheckpointPath, found: Found | None) -> None:
        try:
            self._valid(path, found)
        except NotFound:
            return
        except InvalidInput:
            pass  # damaged, but there: not ours to replace unasked
        raise Conflict(
            f"checkpoint {path} exists", field="name", hint="choose another name, or pass overwrite=True to replace it"
        )

    def _locate(self, path: CheckpointPath) -> tuple[Manifest, Found]:
        found = self._backing.find(_checked(path))
        manifest = self._valid(path, found)
        assert found is not None
        return manifest, found

    def _with_file(self, path: CheckpointPath, file_name: str) -> tuple[Manifest, Found]:
        manifest, found = self._locate(path)
        if file_name not in manifest.files:
            raise NotFound(f"checkpoint {path} has no file {file_name!r}", field="file")
        return manifest, found

    def _valid(self, path: CheckpointPath, found: Found | None) -> Manifest:
        """The manifest of what was found, if that is a checkpoint now."""
        if found is None:
            if self._backing.is_incomplete(path):
                raise NotFound(f"checkpoint {path} is incomplete: it has no manifest", field="path")
            raise no_checkpoint(path)
        manifest = Manifest.from_json(found.manifest, path=path)
        if manifest.is_expired(self._clock()):
            assert manifest.expires_at is not None
            when = datetime.fromtimestamp(manifest.expires_at, UTC)
            raise NotFound(f"checkpoint {path} has expired, on {when:%Y-%m-%d at %H:%M:%S} UTC", field="path")
        return manifest

    def _listed(self, path: CheckpointPath) -> Manifest | None:
        try:
            return self.manifest(path)
        except NotFound:
            return None
        except InvalidInput as error:
            log.warning("%s", error.message)
            return None

    def _is_over(self, path: CheckpointPath, found: Found | None) -> bool:
        """Whether it has expired so long ago that everybody's clock says so."""
        if found is None:
            return False
        try:
            return Manifest.from_json(found.manifest, path=path).is_expired(self._clock() - CLOCK_SKEW_S)
        except InvalidInput:
            return False  # damaged: a person should look at it

    def _read_files(self, manifest: Manifest, found: Found) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for name, expected in manifest.files.items():
            try:
                data = self._backing.read_file(found, name)
            except FileNotFoundError as error:
                raise _damaged(manifest, name, "is missing") from error
            if len(data) != expected.size_bytes:
                raise _damaged(manifest, name, f"has {len(data)} bytes instead of {expected.size_bytes}")
            if StoredFile.of(data) != expected:
                raise _damaged(manifest, name, "has another sha256 than the manifest says")
            files[name] = data
        return files


def no_checkpoint(path: CheckpointPath) -> NotFound:
    """What is said of a checkpoint that is not there, and of one that the caller may not know of."""
    return NotFound(f"no checkpoint {path}", field="path")


def _checked(path: CheckpointPath) -> CheckpointPath:
    if path.kind not in KINDS:
        raise InvalidInput(f"{path.kind!r} is no kind of checkpoint", field="path")
    check_run_id(path.run_id)
    check_name(path.name)
    return path


def _damaged(manifest: Manifest, name: str, how: str) -> InvalidInput:
    return InvalidInput(
        f"checkpoint {manifest.path} is damaged: {name} {how}", field="path", hint="load another checkpoint of the run"
    )
