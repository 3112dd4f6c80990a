"""What a control plane keeps of its users: sessions, samplers, projects, keys, usage. Times are in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from farstep_proto.v1 import control_pb2 as pb


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a `ServiceClient` opened; `closed_at` is None while it is open."""

    session_id: str
    project: str
    reuse_from_session_id: str
    user_metadata: Mapping[str, str]
    created_at: datetime
    last_seen_at: datetime | None
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """A fresh sampler; `model_path` is empty where it serves the base model."""

    sampler_id: str
    session_id: str
    project: str
    state: str
    message: str
    base_model: str
    model_path: str
    sampler_url: str
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a project may have at once; None: without limit.

    Args:
        max_sessions: open ones.
        max_runs: those that are not deleted.
        max_samplers: fresh ones.
        max_trainer_replicas: of one run.
        max_sampler_replicas: of one sampler.
    """

    max_sessions: int | None = None
    max_runs: int | None = None
    max_samplers: int | None = None
    max_trainer_replicas: int | None = None
    max_sampler_replicas: int | None = None


@dataclass(frozen=True, slots=True)
class ProjectInfo:
    project: str
    quotas: Quotas
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key without its secret, of which nothing is kept but the first characters, `hint`.

    Args:
        project: what it may see; empty for an operator's, which sees every project.
        last_used_at: within minutes.
    """

    key_id: str
    name: str
    project: str
    operator: bool
    hint: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """`secret` is told this once, and kept nowhere."""

    key: KeyInfo
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used, of one run or project; `run_id` is empty where it is the sum of a project.

    Args:
        num_operations: of trainers.
        tokens_forward: of forward passes without a backward one.
        tokens_trained: of `forward_backward`.
        tokens_prompted, tokens_sampled: of `num_samples` samples.
        trainer_seconds, sampler_seconds: of the device, GPU seconds where that is a GPU.
    """

    project: str
    run_id: str
    num_operations: int
    tokens_forward: int
    tokens_trained: int
    num_samples: int
    tokens_prompted: int
    tokens_sampled: int
    trainer_seconds: float
    sampler_seconds: float


def session_from_proto(message: pb.Session) -> SessionInfo:
    return SessionInfo(
        session_id=message.session_id,
        project=message.project,
        reuse_from_session_id=message.reuse_from_session_id,
        user_metadata=dict(message.user_metadata),
        created_at=_moment(message.created_at),
        last_seen_at=_moment(message.last_seen_at) if message.last_seen_at else None,
        closed_at=_moment(message.closed_at) if message.HasField("closed_at") else None,
    )


def sampler_from_proto(message: pb.ProvisionedSampler) -> SamplerInfo:
    return SamplerInfo(
        sampler_id=message.sampler_id,
        session_id=message.session_id,
        project=message.project,
        state=message.state,
        message=message.message,
        base_model=message.base_model,
        model_path=message.model_path,
        sampler_url=message.sampler_url,
        created_at=_moment(message.created_at) if message.created_at else None,
    )


def project_from_proto(message: pb.Project) -> ProjectInfo:
    quotas = {limit.name: value for limit, value in message.quotas.ListFields()}
    return ProjectInfo(message.project, Quotas(**quotas), _moment(message.created_at))


def quotas_to_proto(quotas: Quotas) -> pb.Quotas:
    return pb.Quotas(
        max_sessions=quotas.max_sessions,
        max_runs=quotas.max_runs,
        max_samplers=quotas.max_samplers,
        max_trainer_replicas=quotas.max_trainer_replicas,
        max_sampler_replicas=quotas.max_sampler_replicas,
    )


def key_from_proto(message: pb.Key) -> KeyInfo:
    return KeyInfo(
        key_id=message.key_id,
        name=message.name,
        project=message.project,
        operator=message.operator,
        hint=message.hint,
        created_at=_moment(message.created_at),
        expires_at=_moment(message.expires_at) if message.HasField("expires_at") else None,
        revoked_at=_moment(message.revoked_at) if message.HasField("revoked_at") else None,
        last_used_at=_moment(message.last_used_at) if message.HasField("last_used_at") else None,
    )


def usage_from_proto(message: pb.Usage) -> Usage:
    return Usage(
        project=message.project,
        run_id=message.run_id,
        num_operations=message.num_operations,
        tokens_forward=message.tokens_forward,
        tokens_trained=message.tokens_trained,
        num_samples=message.num_samples,
        tokens_prompted=message.tokens_prompted,
        tokens_sampled=message.tokens_sampled,
        trainer_seconds=message.trainer_seconds,
        sampler_seconds=message.sampler_seconds,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
