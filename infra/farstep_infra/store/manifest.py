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

from google.protobuf import json_format

from farstep_proto.errors import InvalidInput
from farstep_proto.names import CheckpointPath, Kind, check_name
from farstep_proto.v1 import control_pb2

FILE_NAME = "manifest.json"
_FORMAT = 1
_TARGETS: Mapping[Kind, str] = {"weights": "trainer", "sampler_weights": "sampler", "external_weights": "external"}

JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"


class StoredFile(NamedTuple):
    size_bytes: int
    sha256: str  # hex

    @classmethod
    def of(cls, data: bytes) -> StoredFile:
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is made of; times are seconds since the epoch, `expires_at` None means never.

    `files_in` is the folder of the files beside the manifest; empty: they lie where the manifest does. `public`: every
    project of the installation may read it.
    """

    path: CheckpointPath
    created_at: float
    files: Mapping[str, StoredFile]
    expires_at: float | None = None
    meta: Mapping[str, JSON] = field(default_factory=lambda: MappingProxyType({}))
    files_in: str = ""
    public: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())

    @property
    def project(self) -> str:
        """Whose it is; empty: the operators'."""
        project = self.meta.get("project")
        return project if isinstance(project, str) else ""

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def to_proto(self) -> control_pb2.Checkpoint:
        """The checkpoint as clients see it."""
        checkpoint = control_pb2.Checkpoint(
            checkpoint_id=self.path.checkpoint_id,
            run_id=self.path.run_id,
            target=_TARGETS[self.path.kind],
            path=str(self.path),
            created_at=self.created_at,
            size_bytes=self.size_bytes,
            base_model=str(self.meta.get("base_model", "")),
            expires_at=self.expires_at,
            sha256s={name: file.sha256 for name, file in self.files.items()},
            public=self.public,
        )
        for name in ("policy_version", "step"):
            value = self.meta.get(name)
            if isinstance(value, int):
                setattr(checkpoint, name, value)
        lora, metadata = self.meta.get("lora"), self.meta.get("metadata")
        if isinstance(lora, dict):
            json_format.ParseDict(lora, checkpoint.lora_adapter_config, ignore_unknown_fields=True)
        if isinstance(metadata, dict):
            checkpoint.metadata.update({str(key): str(value) for key, value in metadata.items()})
        return checkpoint

    def to_json(self) -> bytes:
        content = {
            "format": _FORMAT,
            "path": str(self.path),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "files": {name: file._asdict() for name, file in self.files.items()},
            "meta": dict(self.meta),
        }
        if self.files_in:
            content["files_in"] = self.files_in
        if self.public:
            content["public"] = True
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
            files_in = check_name(content["files_in"]) if "files_in" in content else ""
            public = content.get("public") is True
            return cls(path, float(content["created_at"]), files, expires_at, dict(content["meta"]), files_in, public)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidInput) as error:
            raise InvalidInput(f"checkpoint {path}: its manifest is damaged ({error})", field="path") from error
