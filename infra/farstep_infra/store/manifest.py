"""The manifest of a checkpoint: what belongs to it and how to know that it is whole.

Plain JSON, so that a person can read it. It is the last file written: without it there is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath, check_name

FILE_NAME = "manifest.json"
_FORMAT = 1

JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"


class StoredFile(NamedTuple):
    size_bytes: int
    sha256: str  # hex

    @classmethod
    def of(cls, data: bytes) -> StoredFile:
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is made of; times are seconds since the epoch, `expires_at` None means never."""

    path: CheckpointPath
    created_at: float
    files: Mapping[str, StoredFile]
    expires_at: float | None = None
    meta: Mapping[str, JSON] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def to_json(self) -> bytes:
        content = {
            "format": _FORMAT,
            "path": str(self.path),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "files": {name: file._asdict() for name, file in self.files.items()},
            "meta": dict(self.meta),
        }
        return json.dumps(content, indent=1, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes, *, path: CheckpointPath) -> Manifest:
        """Reads the manifest found at `path`.

        Raises:
            InvalidInput: it is damaged, or of another checkpoint.
        """
        try:
            content = json.loads(data)
            if content["format"] != _FORMAT or CheckpointPath.parse(content["path"]) != path:
                raise ValueError("it is of another format or another checkpoint")
            files = {
                check_name(name): StoredFile(int(file["size_bytes"]), str(file["sha256"]))
                for name, file in content["files"].items()
            }
            expires_at = None if content["expires_at"] is None else float(content["expires_at"])
            return cls(path, float(content["created_at"]), files, expires_at, dict(content["meta"]))
        except (ValueError, KeyError, TypeError, AttributeError, InvalidInput) as error:
            raise InvalidInput(f"checkpoint {path}: its manifest is damaged ({error})", field="path") from error
