"""The tables of the control plane, as the newest migration leaves them.

What they hold is what was asked for and what became of it, never what runs just now: that is the fleet's to say.
A change here needs a migration beside it (`farstep_infra.migrations`); a test compares the two.
"""

from __future__ import annotations

import time

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DEFAULT_PROJECT = "default"  # of who names none


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, str]: JSON, list[str]: JSON, float: Double, int: BigInteger}  # noqa: RUF012 - SQLAlchemy's own


class ProjectRow(Base):
    """A deleted one stays: its name is not given again, because its runs and checkpoints go by it."""

    __tablename__ = "projects"
    __table_args__ = (Index("projects_by_age", "created_at", "project"),)

    project: Mapped[str] = mapped_column(primary_key=True)
    max_sessions: Mapped[int | None]
    max_runs: Mapped[int | None]
    max_samplers: Mapped[int | None]
    max_trainer_replicas: Mapped[int | None]
    max_sampler_replicas: Mapped[int | None]
    created_at: Mapped[float] = mapped_column(default=time.time)
    deleted_at: Mapped[float | None] = mapped_column(default=None)


class KeyRow(Base):
    __tablename__ = "keys"
    __table_args__ = (Index("keys_by_age", "created_at", "key_id"),)

    key_id: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[bytes] = mapped_column(unique=True)
    name: Mapped[str]
    project: Mapped[str] = mapped_column(index=True)  # empty for an operator's
    operator: Mapped[bool]
    hint: Mapped[str]
    created_at: Mapped[float] = mapped_column(default=time.time)
    expires_at: Mapped[float | None] = mapped_column(default=None)
    revoked_at: Mapped[float | None] = mapped_column(default=None)
    last_used_at: Mapped[float | None] = mapped_column(default=None)


class SessionRow(Base):
    __tablename__ = "sessions"
    __table_args__ = (
        Index("sessions_by_age", "created_at", "session_id"),
        Index("sessions_of_project", "project", "created_at", "session_id"),
    )

    session_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    reuse_from_session_id: Mapped[str]
    user_metadata: Mapped[dict[str, str]]
    created_at: Mapped[float] = mapped_column(default=time.time)
    last_seen_at: Mapped[float] = mapped_column(default=time.time, index=True)
    closed_at: Mapped[float | None] = mapped_column(default=None)
    display_name: Mapped[str] = mapped_column(default="")
    tags: Mapped[list[str]] = mapped_column(default=list)
    outcome: Mapped[str] = mapped_column(default="")  # how its client said that it ended: "success", "errored", …
    outcome_detail: Mapped[str] = mapped_column(default="")


class RunRow(Base):
    __tablename__ = "runs"
    __table_args__ = (
        Index("runs_by_age", "created_at", "run_id"),
        Index("runs_of_project", "project", "created_at", "run_id"),
    )

    run_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    project: Mapped[str]  # its session's
    state: Mapped[str]
    message: Mapped[str]
    base_model: Mapped[str]
    request: Mapped[bytes]  # the serialized ProvisionRunRequest
    created_at: Mapped[float] = mapped_column(default=time.time)
    stack_id: Mapped[str | None] = mapped_column(
        default="", index=True
    )  # empty: not chosen; NULL: before there were any
    deactivated_at: Mapped[float | None] = mapped_column(default=None)  # by somebody who asked for it


class SamplerRow(Base):
    __tablename__ = "samplers"
    __table_args__ = (
        Index("samplers_by_age", "created_at", "sampler_id"),
        Index("samplers_of_project", "project", "created_at", "sampler_id"),
    )

    sampler_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    project: Mapped[str]  # its session's
    state: Mapped[str]
    message: Mapped[str]
    base_model: Mapped[str]
    model_path: Mapped[str]
    created_at: Mapped[float] = mapped_column(default=time.time)
    stack_id: Mapped[str | None] = mapped_column(default="", index=True)  # as a run's
    replicas: Mapped[int] = mapped_column(default=1)


class TinkerModelRow(Base):
    """What the Tinker wire says of a run and a run's own row does not: the run was made over that wire."""

    __tablename__ = "tinker_models"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)  # is its model id
    load_path: Mapped[str] = mapped_column(default="")  # the checkpoint that it begins with; empty: none
    load_optimizer: Mapped[bool] = mapped_column(default=False)
    optimizer: Mapped[str] = mapped_column(default="adamw")  # the family chosen for its life


class TinkerSeqRow(Base):
    """From one Tinker seq of a run on, what is added to it to get the trainer's: a step of `gateway.seqs.SeqMap`."""

    __tablename__ = "tinker_seqs"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.run_id"), primary_key=True)
    from_seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    offset: Mapped[int]


class SamplingSessionRow(Base):
    """What a sampling client of the Tinker wire samples from, for as long as its project lasts."""

    __tablename__ = "sampling_sessions"
    __table_args__ = (Index("sampling_sessions_by_age", "created_at", "sampling_session_id"),)

    sampling_session_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    project: Mapped[str]  # its session's
    base_model: Mapped[str]
    model_path: Mapped[str]  # of a checkpoint; empty: the base model's, or a published policy's
    run_id: Mapped[str]  # whose policy it is; empty: the base model's
    policy_version: Mapped[int | None]  # of a policy that is sampled by its number
    kind: Mapped[str] = mapped_column(default="snapshot")  # or "inflight": that version or newer
    num_joined: Mapped[int] = mapped_column(default=0)  # clients beside the one that made it
    created_at: Mapped[float] = mapped_column(default=time.time)


class StackRow(Base):
    """A trainer with its samplers, or samplers alone: what they are for, whether or not they run."""

    __tablename__ = "stacks"

    stack_id: Mapped[str] = mapped_column(primary_key=True)
    base_model: Mapped[str]
    model_path: Mapped[str]
    num_trainers: Mapped[int]
    is_shared: Mapped[bool]
    created_at: Mapped[float] = mapped_column(default=time.time)


class ServerRow(Base):
    """The one place of a stack's server: it is started there again and again."""

    __tablename__ = "servers"

    role: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    stack_id: Mapped[str] = mapped_column(ForeignKey("stacks.stack_id"), index=True)
    port: Mapped[int]
    feed_port: Mapped[int]  # 0 but for a trainer


class AnsweredRow(Base):
    """What a creation that carried an idempotency key was answered."""

    __tablename__ = "answered"

    key_id: Mapped[str] = mapped_column(primary_key=True)  # whose idempotency key it is
    idempotency_key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]  # SHA-256 of what was asked for
    answer: Mapped[bytes]  # the serialized message, without secrets
    created_at: Mapped[float] = mapped_column(default=time.time, index=True)


class Counters:
    """The columns of a `Usage` message."""

    num_operations: Mapped[int] = mapped_column(default=0)
    tokens_forward: Mapped[int] = mapped_column(default=0)
    tokens_trained: Mapped[int] = mapped_column(default=0)
    num_samples: Mapped[int] = mapped_column(default=0)
    tokens_prompted: Mapped[int] = mapped_column(default=0)
    tokens_sampled: Mapped[int] = mapped_column(default=0)
    trainer_seconds: Mapped[float] = mapped_column(default=0.0)
    sampler_seconds: Mapped[float] = mapped_column(default=0.0)


class UsageRow(Counters, Base):
    """What a run used on one day (UTC); `run_id` is empty for what no run did, such as sampling a base model."""

    __tablename__ = "usage"
    __table_args__ = (Index("usage_of_project", "project", "run_id", "day"),)

    day: Mapped[str] = mapped_column(primary_key=True)  # 2026-01-31
    project: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(primary_key=True)


class ReportedUsageRow(Counters, Base):
    """The newest totals that a server has reported since it began."""

    __tablename__ = "reported_usage"

    instance_id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(primary_key=True)
    reported_at: Mapped[float] = mapped_column(default=time.time, index=True)
