"""Checkpoints as objects of a bucket: `<run_id>/<kind>/<name>/manifest.json`, and the files in a folder beside it.

The folder has a name that no other writer has, and the manifest tells it: an overwrite replaces one object, so that
readers find the old checkpoint or the new one. There are no locks: a manifest is written where it is still the one
that the decision was taken on (If-Match, If-None-Match), else the decision is taken again.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from farstep_infra.store.backing import Found
from farstep_infra.store.blobs import Blobs, Changed, S3Blobs
from farstep_infra.store.manifest import FILE_NAME, Manifest
from farstep_proto.errors import Conflict, NotFound
from farstep_proto.names import KINDS, CheckpointPath, Kind

_ATTEMPTS = 20


class Objects:
    """A `Backing` in a bucket."""

    def __init__(self, blobs: S3Blobs) -> None:
        self._blobs = blobs

    def find(self, path: CheckpointPath) -> Found | None:
        try:
            data, tag = self._blobs.get_tagged(_manifest_key(path))
        except NotFound:
            return None
        return Found(data, f"{_folder(path)}{_files_in(data)}/", tag)

    def is_incomplete(self, path: CheckpointPath) -> bool:
        return any(True for _ in self._blobs.entries(_folder(path)))

    def read_file(self, found: Found, name: str) -> bytes:
        try:
            return self._blobs.get(found.place + name)
        except NotFound as error:
            raise FileNotFoundError(name) from error

    def put(
        self,
        path: CheckpointPath,
        files: Mapping[str, bytes],
        manifest: Manifest,
        *,
        may_replace: Callable[[Found | None], None],
    ) -> None:
        may_replace(self.find(path))
        manifest = dataclasses.replace(manifest, files_in=secrets.token_hex(8))
        folder = f"{_folder(path)}{manifest.files_in}/"
        try:
            for name, data in files.items():
                self._blobs.put(folder + name, data)
            before = self._swap(path, lambda found: self._allowed(may_replace, found, manifest))
        except BaseException:
            self._empty(folder)
            raise
        if before is not None:
            self._empty(before.place)

    def change(self, path: CheckpointPath, changed: Callable[[Found | None], bytes]) -> None:
        self._swap(path, changed)

    def remove(self, path: CheckpointPath, *, only_if: Callable[[Found | None], bool]) -> bool:
        for _ in range(_ATTEMPTS):
            found = self.find(path)
            if not only_if(found):
                return False
            try:
                if found is not None:
                    self._blobs.delete_if(_manifest_key(path), tag=found.tag)
            except Changed:
                continue
            # Of an unreadable manifest nobody knows the folder: then all that is there goes.
            place = found.place if found is not None and _files_in(found.manifest) else _folder(path)
            return bool(self._empty(place)) or found is not None
        raise _contended(path)

    def names(self, run_id: str, kind: Kind) -> list[str]:
        return self._blobs.list(f"{run_id}/{kind}/")

    def runs(self) -> list[str]:
        return [name for name in self._blobs.list() if "~" not in name]

    def sweep_abandoned(self, run_id: str, *, before: float) -> int:
        num_removed = 0
        for kind in KINDS:
            for name in self.names(run_id, kind):
                path = CheckpointPath(run_id, kind, name)
                old = [key for key, modified_at in self._blobs.entries(_folder(path)) if modified_at < before]
                if not old:
                    continue
                found = self.find(path)
                if found is not None and not _files_in(found.manifest):
                    continue  # damaged: a person should look at it
                kept = found.place if found is not None else None
                left = [key for key in old if key != _manifest_key(path) and (not kept or not key.startswith(kept))]
                for key in left:
                    self._blobs.delete(key)
                num_removed += bool(left)
        return num_removed

    def private(self, folder: str) -> Blobs:
        return self._blobs.within(folder)

    def file_path(self, found: Found, name: str) -> Path | None:
        return None

    def signed_url(self, found: Found, name: str, *, ttl_s: int) -> str | None:
        return self._blobs.signed_url(found.place + name, ttl_s=ttl_s)

    def _swap(self, path: CheckpointPath, changed: Callable[[Found | None], bytes]) -> Found | None:
        """Puts the manifest that `changed` makes of the present one in its place; returns that one."""
        for _ in range(_ATTEMPTS):
            found = self.find(path)
            data = changed(found)
            try:
                self._blobs.put_if(_manifest_key(path), data, tag=found.tag if found is not None else None)
            except Changed:
                continue
            return found
        raise _contended(path)

    @staticmethod
    def _allowed(may_replace: Callable[[Found | None], None], found: Found | None, manifest: Manifest) -> bytes:
        may_replace(found)
        return manifest.to_json()

    def _empty(self, folder: str) -> int:
        keys = [key for key, _ in self._blobs.entries(folder)]
        for key in keys:
            self._blobs.delete(key)
        return len(keys)


def _folder(path: CheckpointPath) -> str:
    return f"{path.run_id}/{path.kind}/{path.name}/"


def _manifest_key(path: CheckpointPath) -> str:
    return _folder(path) + FILE_NAME


def _files_in(manifest: bytes) -> str:
    """The folder that a manifest names; empty where it is damaged."""
    try:
        content = json.loads(manifest)
    except ValueError:
        return ""
    name = content.get("files_in") if isinstance(content, dict) else None
    return name if isinstance(name, str) and name.isalnum() else ""


def _contended(path: CheckpointPath) -> Conflict:
    return Conflict(f"checkpoint {path} is being changed again and again by others", field="path")
