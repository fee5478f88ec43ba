"""First schema: studies with their lease, trials, attempts, epochs, verdicts, promotions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(64)


def key(name: str, kind: object = None) -> sa.Column:
    return sa.Column(name, kind or sa.Integer, primary_key=True)  # type: ignore[arg-type]


def of_trial() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["study", "number"], ["agft_trial.study", "agft_trial.number"], ondelete="CASCADE")


def of_study() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["study"], ["agft_study.name"], ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "agft_study",
        key("name", NAME),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("desired", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("driven_seconds", sa.Float, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String(255)),
        sa.Column("lease_expires", sa.Float),
        sa.Column("baseline", sa.JSON),
        sa.Column("provenance", sa.JSON),
    )
    op.create_table(
        "agft_trial",
        key("study", NAME),
        key("number"),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("stop_reason", sa.Text),
        sa.Column("failure_kind", sa.String(32)),
        sa.Column("latest", sa.JSON),
        sa.Column("best", sa.JSON),
        of_study(),
    )
    op.create_table(
        "agft_attempt",
        key("study", NAME),
        key("number"),
        key("token"),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("device_seconds", sa.Float, nullable=False),
        sa.Column("outcome", sa.String(32)),
        sa.Column("provenance", sa.JSON),
        of_trial(),
    )
    op.create_table(
        "agft_epoch", key("study", NAME), key("number"), key("epoch"),
        sa.Column("record", sa.JSON, nullable=False), of_trial(),
    )  # fmt: skip
    op.create_table(
        "agft_verdict",
        key("study", NAME),
        key("number"),
        key("epoch"),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        of_trial(),
    )
    op.create_table(
        "agft_promotion",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("study", NAME, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("record", sa.JSON),
        of_study(),
    )
