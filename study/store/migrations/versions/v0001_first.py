"""First schema: studies with their lease, trials, attempts, epochs, verdicts, promotions, final looks, requests.

Written out, not taken from `study.store.tables`, which will change: this is the schema of the first release for ever.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(64)


def key(name: str, kind: Any = sa.Integer) -> sa.Column:
    return sa.Column(name, kind, primary_key=True)


def needed(name: str, kind: Any, **more: Any) -> sa.Column:
    return sa.Column(name, kind, nullable=False, **more)


def of_trial() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["study", "number"], ["agft_trial.study", "agft_trial.number"], ondelete="CASCADE")


def of_study() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["study"], ["agft_study.name"], ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "agft_study",
        key("name", NAME),
        needed("spec", sa.Text),
        needed("spec_hash", sa.String(64)),
        needed("desired", sa.String(16)),
        needed("state", sa.String(16)),
        needed("created_ms", sa.BigInteger),
        needed("driven_seconds", sa.Float),
        needed("token", sa.Integer),
        sa.Column("lease_owner", sa.String(255)),
        sa.Column("lease_expires", sa.Float),
        sa.Column("baseline", sa.JSON),
        sa.Column("provenance", sa.JSON),
        sa.Column("budget", sa.JSON),
        sa.Column("message", sa.Text),
        sa.Column("lag", sa.Integer),
        sa.Column("starts", sa.JSON),
        needed("extended_at", sa.Integer, server_default="0"),
    )
    op.create_table(
        "agft_trial",
        key("study", NAME),
        key("number"),
        needed("state", sa.String(16)),
        needed("params", sa.JSON),
        needed("config", sa.JSON),
        needed("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("stop_reason", sa.Text),
        sa.Column("failure_kind", sa.String(32)),
        sa.Column("latest", sa.JSON),
        sa.Column("best", sa.JSON),
        sa.Column("rerun_of", sa.Integer),
        sa.Column("origin", sa.Text),
        sa.Column("memory", sa.JSON),
        sa.Column("dropped_at", sa.Integer),
        sa.Column("state_before", sa.String(16)),
        needed("finishing", sa.Boolean, server_default=sa.false()),
        of_study(),
    )
    op.create_table(
        "agft_attempt",
        key("study", NAME),
        key("number"),
        key("token"),
        needed("started_ms", sa.BigInteger),
        sa.Column("ended_ms", sa.BigInteger),
        needed("device_seconds", sa.Float),
        sa.Column("outcome", sa.String(32)),
        sa.Column("provenance", sa.JSON),
        of_trial(),
    )
    op.create_table(
        "agft_epoch", key("study", NAME), key("number"), key("epoch"), needed("record", sa.JSON), of_trial()
    )
    op.create_table(
        "agft_verdict",
        key("study", NAME),
        key("number"),
        key("epoch"),
        needed("decision", sa.String(16)),
        needed("reason", sa.Text),
        of_trial(),
    )
    op.create_table("agft_sign", key("study", NAME), key("number"), needed("sign", sa.JSON), of_trial())
    op.create_table(
        "agft_promotion",
        key("id"),
        needed("study", NAME),
        needed("started_ms", sa.BigInteger),
        needed("state", sa.String(16)),
        sa.Column("record", sa.JSON),
        needed("name", sa.String(32)),
        needed("owner", sa.String(255)),
        sa.Column("ended_ms", sa.BigInteger),
        of_study(),
    )
    op.create_table(
        "agft_final_access",
        key("id"),
        needed("study", NAME),
        sa.Column("promotion", sa.String(32)),
        needed("at_ms", sa.BigInteger),
        needed("model", sa.Text),
        needed("sets", sa.JSON),
        of_study(),
    )
    op.create_table(
        "agft_request",
        key("id"),
        needed("study", NAME),
        needed("kind", sa.String(16)),
        needed("number", sa.Integer),
        needed("note", sa.Text),
        needed("asked_ms", sa.BigInteger),
        sa.Column("done_ms", sa.BigInteger),
        sa.Column("outcome", sa.Text),
        of_study(),
    )
