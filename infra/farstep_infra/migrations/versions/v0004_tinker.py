"""What the Tinker wire says of sessions and runs beyond what Farstep's own does, and its sampling sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for name in ("display_name", "outcome", "outcome_detail"):
        op.add_column("sessions", sa.Column(name, sa.String(), nullable=False, server_default=""))
    op.add_column("sessions", sa.Column("tags", sa.JSON(), nullable=False, server_default="[]"))
    op.create_table(
        "tinker_models",
        sa.Column("run_id", sa.String(), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("load_path", sa.String(), nullable=False),
        sa.Column("load_optimizer", sa.Boolean(), nullable=False),
        sa.Column("optimizer", sa.String(), nullable=False),
    )
    op.create_table(
        "tinker_seqs",
        sa.Column("run_id", sa.String(), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("from_seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "sampling_sessions",
        sa.Column("sampling_session_id", sa.String(), primary_key=True),
        sa.Column("session_id", sa.String(), sa.ForeignKey("sessions.session_id"), nullable=False),
        sa.Column("project", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("model_path", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("policy_version", sa.BigInteger()),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("num_joined", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_index("ix_sampling_sessions_session_id", "sampling_sessions", ["session_id"])
    op.create_index("sampling_sessions_by_age", "sampling_sessions", ["created_at", "sampling_session_id"])
