"""Checkpoints as users see them: what is kept of a run, and where its files can be fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from farstep._convert import lora_from_proto
from farstep.results import LoraConfig
from farstep_proto.v1 import control_pb2


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One kept state of a run: of the trainer (to go on from), of the sampler (to sample from), or for other programs.

    Args:
        id, checkpoint_id: `<run_id>/<kind>/<name>`, unique on a server.
        path: the same as a `bt://` path, which every call takes.
        sha256s: hex digest of each file.
    """

    id: str
    checkpoint_id: str
    run_id: str
    target: Literal["trainer", "sampler", "external"]
    path: str
    created_at: datetime
    size_bytes: int
    base_model: str
    lora_adapter_config: LoraConfig
    policy_version: int | None
    step: int | None
    expires_at: datetime | None
    sha256s: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """`url` is signed and needs no key: treat it as a secret until it expires."""

    name: str
    url: str = field(repr=False)
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CheckpointArchive:
    """Every file of a checkpoint, with an address to fetch it from until `expires_at`."""

    checkpoint_id: str
    files: tuple[ArchiveFile, ...]
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class ImportedAdapter:
    """Where an imported adapter is kept: `path` to train on from, `sampler_path` to sample from."""

    path: str
    sampler_path: str


def _target(name: str) -> Literal["trainer", "sampler", "external"]:
    match name:
        case "trainer" | "external" as target:
            return target
    return "sampler"


def checkpoint_from_proto(message: control_pb2.Checkpoint) -> Checkpoint:
    return Checkpoint(
        id=message.checkpoint_id,
        checkpoint_id=message.checkpoint_id,
        run_id=message.run_id,
        target=_target(message.target),
        path=message.path,
        created_at=datetime.fromtimestamp(message.created_at, UTC),
        size_bytes=message.size_bytes,
        base_model=message.base_model,
        lora_adapter_config=lora_from_proto(message.lora_adapter_config),
        policy_version=message.policy_version if message.HasField("policy_version") else None,
        step=message.step if message.HasField("step") else None,
        expires_at=datetime.fromtimestamp(message.expires_at, UTC) if message.HasField("expires_at") else None,
        sha256s=dict(message.sha256s),
        metadata=dict(message.metadata),
    )


def archive_from_proto(pages: list[control_pb2.CheckpointArchive]) -> CheckpointArchive:
    files = [ArchiveFile(file.name, file.url, file.size_bytes, file.sha256) for page in pages for file in page.files]
    expires_at = min(page.expires_at for page in pages)
    return CheckpointArchive(pages[0].checkpoint_id, tuple(files), datetime.fromtimestamp(expires_at, UTC))
