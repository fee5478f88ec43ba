"""Promotion: who promotes, when it ended, and every access to the final sets."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Plain ADD COLUMN: a table that is rebuilt (batch mode) would delete its rows' children on SQLite.
    op.add_column("agft_promotion", sa.Column("name", sa.String(32)))
    op.add_column("agft_promotion", sa.Column("owner", sa.String(255)))
    op.add_column("agft_promotion", sa.Column("ended_ms", sa.BigInteger))
    op.create_table(
        "agft_final_access",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("study", sa.String(64), nullable=False),
        sa.Column("promotion", sa.String(32)),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("sets", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["study"], ["agft_study.name"], ondelete="CASCADE"),
    )
    _count_earlier_accesses()


def _count_earlier_accesses() -> None:
    """Promotions before this revision say in their record whether they looked."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT study, started_ms, record FROM agft_promotion ORDER BY id"))
    for study, started_ms, text in rows.fetchall():
        record = json.loads(text) if isinstance(text, str) else text
        measured = (record or {}).get("final") or {}
        if measured:
            sets = sorted({name for result in measured.values() for name in result.get("datasets", {})})
            connection.execute(
                sa.text(
                    "INSERT INTO agft_final_access (study, promotion, at_ms, model, sets) "
                    "VALUES (:study, NULL, :at_ms, :model, :sets)"
                ).bindparams(sa.bindparam("sets", type_=sa.JSON)),
                {"study": study, "at_ms": started_ms, "model": f"trial {record.get('trial')}", "sets": sets},
            )
