"""Stacks with the places of their servers, and which stack a run or sampler is on.

Of what there is, nothing is on a stack: the processes of that time ended with their control plane.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "stacks",
        sa.Column("stack_id", sa.String(), primary_key=True),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("model_path", sa.String(), nullable=False),
        sa.Column("num_trainers", sa.BigInteger(), nullable=False),
        sa.Column("is_shared", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
    )
    op.create_table(
        "servers",
        sa.Column("role", sa.String(), primary_key=True),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("stack_id", sa.String(), sa.ForeignKey("stacks.stack_id"), nullable=False),
        sa.Column("port", sa.BigInteger(), nullable=False),
        sa.Column("feed_port", sa.BigInteger(), nullable=False),
    )
    op.create_index("ix_servers_stack_id", "servers", ["stack_id"])
    for table in ("runs", "samplers"):
        op.add_column(table, sa.Column("stack_id", sa.String()))
        op.create_index(f"ix_{table}_stack_id", table, ["stack_id"])
    op.add_column("runs", sa.Column("deactivated_at", sa.Double()))
    op.add_column("samplers", sa.Column("replicas", sa.BigInteger(), nullable=False, server_default="1"))
