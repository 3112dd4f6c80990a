"""Runs and checkpoints in the words of the Tinker wire: pure translations of what we have of them.

Times are UTC. What we do not know is left out, never made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from farstep_infra.gateway.bodies import Body
from farstep_infra.store.manifest import Manifest
from farstep_proto.names import Kind
from farstep_proto.v1 import control_pb2

CheckpointType = Literal["training", "sampler", "external"]
_TYPES: Mapping[Kind, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}
OPERATORS = "operators"  # whose what belongs to no project is


class Checkpoint(Body):
    """`checkpoint_id` is `<kind>/<name>`, unique in its run."""

    checkpoint_id: str
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: datetime | None = None


class TrainingRun(Body):
    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool = True
    corrupted: bool = False
    lora_rank: int | None = None
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class WeightsOptimizer(Body):
    """The one that there is."""

    type: Literal["adamw"] = "adamw"


class WeightsInfo(Body):
    base_model: str
    is_lora: bool = True
    lora_rank: int | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None
    optimizer_config: WeightsOptimizer


class Cursor(Body):
    offset: int
    limit: int
    total_count: int


@dataclass(frozen=True, slots=True)
class KnownRun:
    """What the control plane's tables say of a run; `seen_at`: its client's last sign of life."""

    run: control_pb2.ProvisionedRun
    seen_at: float


def checkpoint_record(manifest: Manifest) -> Checkpoint:
    path = manifest.path
    metadata = manifest.to_proto().metadata
    return Checkpoint(
        checkpoint_id=f"{path.kind}/{path.name}",
        checkpoint_type=_TYPES[path.kind],
        time=when(manifest.created_at),
        tinker_path=path.tinker_path,
        size_bytes=manifest.size_bytes,
        public=manifest.public,
        user_metadata=dict(metadata) or None,
        expires_at=None if manifest.expires_at is None else when(manifest.expires_at),
    )


def run_record(known: KnownRun, manifests: Sequence[Manifest]) -> TrainingRun:
    """Args: `manifests`: of the run's checkpoints, oldest first."""
    run = known.run
    return TrainingRun(
        training_run_id=run.run_id,
        base_model=run.base_model,
        model_owner=run.project or OPERATORS,
        corrupted=run.state == "failed",
        lora_rank=run.lora.rank or None,
        last_request_time=when(max([run.created_at, known.seen_at, *(each.created_at for each in manifests)])),
        last_checkpoint=_last(manifests, "weights"),
        last_sampler_checkpoint=_last(manifests, "sampler_weights"),
        user_metadata=dict(run.user_metadata) or None,
    )


def stored_run_record(manifests: Sequence[Manifest], *, base_model: str) -> TrainingRun:
    """Of a run that is known by its checkpoints alone: by one, at least.

    Args:
        base_model: what clients call it.
    """
    newest = manifests[-1].to_proto()
    return TrainingRun(
        training_run_id=newest.run_id,
        base_model=base_model,
        model_owner=manifests[-1].project or OPERATORS,
        lora_rank=newest.lora_adapter_config.rank or None,
        last_request_time=when(newest.created_at),
        last_checkpoint=_last(manifests, "weights"),
        last_sampler_checkpoint=_last(manifests, "sampler_weights"),
    )


def weights_info(manifest: Manifest, *, base_model: str) -> WeightsInfo:
    """Args: `base_model` is what clients call it."""
    checkpoint = manifest.to_proto()
    has_lora = checkpoint.HasField("lora_adapter_config")
    lora = checkpoint.lora_adapter_config
    return WeightsInfo(
        base_model=base_model,
        lora_rank=lora.rank or None,
        train_unembed=lora.train_unembed if has_lora else None,
        train_mlp=lora.train_mlp if has_lora else None,
        train_attn=lora.train_attn if has_lora else None,
        optimizer_config=WeightsOptimizer(),
    )


def when(seconds: float) -> datetime:
    """Seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)


def _last(manifests: Sequence[Manifest], kind: Kind) -> Checkpoint | None:
    found = [each for each in manifests if each.path.kind == kind]
    return checkpoint_record(found[-1]) if found else None
