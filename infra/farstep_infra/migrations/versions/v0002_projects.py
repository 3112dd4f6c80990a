"""Projects with their keys and quotas, idempotency keys, usage; every session, run and sampler is of a project.

What there is keeps the project that its session named, or belongs to "default". SQLite cannot add a column that must be
there without a default, and to rebuild a table is more than this is worth: the added columns keep theirs.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _add_tables()
    op.add_column("sessions", sa.Column("last_seen_at", sa.Double(), nullable=False, server_default="0"))
    for table in ("runs", "samplers"):
        op.add_column(table, sa.Column("project", sa.String(), nullable=False, server_default="default"))
    _fill()
    for table, ident in (("sessions", "session_id"), ("runs", "run_id"), ("samplers", "sampler_id")):
        op.create_index(f"{table}_by_age", table, ["created_at", ident])
        op.create_index(f"{table}_of_project", table, ["project", "created_at", ident])
    op.create_index("ix_sessions_last_seen_at", "sessions", ["last_seen_at"])


def _add_tables() -> None:
    op.create_table(
        "projects",
        sa.Column("project", sa.String(), primary_key=True),
        *(sa.Column(f"max_{what}", sa.BigInteger()) for what in ("sessions", "runs", "samplers")),
        *(sa.Column(f"max_{what}_replicas", sa.BigInteger()) for what in ("trainer", "sampler")),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("deleted_at", sa.Double()),
    )
    op.create_index("projects_by_age", "projects", ["created_at", "project"])
    op.create_table(
        "keys",
        sa.Column("key_id", sa.String(), primary_key=True),
        sa.Column("sha256", sa.LargeBinary(), nullable=False, unique=True),
        *(sa.Column(text, sa.String(), nullable=False) for text in ("name", "project", "hint")),
        sa.Column("operator", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        *(sa.Column(time, sa.Double()) for time in ("expires_at", "revoked_at", "last_used_at")),
    )
    op.create_index("keys_by_age", "keys", ["created_at", "key_id"])
    op.create_index("ix_keys_project", "keys", ["project"])
    op.create_table(
        "answered",
        *(sa.Column(text, sa.String(), primary_key=True) for text in ("key_id", "idempotency_key")),
        *(sa.Column(content, sa.LargeBinary(), nullable=False) for content in ("fingerprint", "answer")),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_answered_created_at", "answered", ["created_at"])
    op.create_table(
        "usage",
        *(sa.Column(text, sa.String(), primary_key=True) for text in ("day", "project", "run_id")),
        *_counters(),
    )
    op.create_index("usage_of_project", "usage", ["project", "run_id", "day"])
    op.create_table(
        "reported_usage",
        *(sa.Column(text, sa.String(), primary_key=True) for text in ("instance_id", "project", "run_id")),
        *_counters(),
        sa.Column("reported_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_reported_usage_reported_at", "reported_usage", ["reported_at"])


def _counters() -> list[sa.Column[Any]]:
    counts = ("num_operations", "tokens_forward", "tokens_trained", "num_samples", "tokens_prompted", "tokens_sampled")
    seconds = ("trainer_seconds", "sampler_seconds")
    return [
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in counts),
        *(sa.Column(name, sa.Double(), nullable=False) for name in seconds),
    ]


def _fill() -> None:
    op.execute("UPDATE sessions SET project = 'default' WHERE project = ''")
    op.execute("UPDATE sessions SET last_seen_at = created_at")
    for table in ("runs", "samplers"):
        op.execute(
            f"UPDATE {table} SET project = "  # noqa: S608 - a name from the tuple above
            f"(SELECT sessions.project FROM sessions WHERE sessions.session_id = {table}.session_id)"
        )
    op.execute(
        "INSERT INTO projects (project, created_at) SELECT project, MIN(created_at) FROM sessions GROUP BY project"
    )
