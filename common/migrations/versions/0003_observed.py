"""Trace context of recordings and sources, device memory of attempts, an index of the backlog"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("recording", sa.Column("traceparent", sa.String(length=55), nullable=True))
    op.add_column("source", sa.Column("traceparent", sa.String(length=55), nullable=True))
    op.add_column("attempt", sa.Column("device_memory_bytes", sa.BigInteger(), nullable=True))
    # The new index begins as the old one does, and also answers how much waits and how long.
    op.create_index(
        "ix_stage_run_backlog", "stage_run", ["state", "stage", "priority", "audio_s", "ready_at"]
    )
    op.drop_index("ix_stage_run_queue", "stage_run")
