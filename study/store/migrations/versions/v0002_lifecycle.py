"""Lifecycle: budgets that grow, trials that are run again or dropped, and what users ask of a driver."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Plain ADD COLUMN: a table that is rebuilt (batch mode) would delete its rows' children on SQLite.
    op.add_column("agft_study", sa.Column("budget", sa.JSON))
    op.add_column("agft_study", sa.Column("message", sa.Text))
    op.add_column("agft_study", sa.Column("generation", sa.Integer, nullable=False, server_default="0"))
    op.add_column("agft_study", sa.Column("extended_at", sa.Integer, nullable=False, server_default="0"))
    op.add_column("agft_trial", sa.Column("rerun_of", sa.Integer))
    op.create_table(
        "agft_request",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("study", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("asked_ms", sa.BigInteger, nullable=False),
        sa.Column("done_ms", sa.BigInteger),
        sa.Column("outcome", sa.Text),
        sa.ForeignKeyConstraint(["study"], ["agft_study.name"], ondelete="CASCADE"),
    )
