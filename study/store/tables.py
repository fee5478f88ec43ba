"""Our tables, beside Optuna's own in the same database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy import false as no

metadata = MetaData()
NAME = String(64)


def _of_study(name: str, *columns: Column[Any]) -> Table:
    """A table of numbered rows that go with their study."""
    of = ForeignKeyConstraint(["study"], ["agft_study.name"], ondelete="CASCADE")
    number = Column("id", Integer, primary_key=True, autoincrement=True)
    return Table(name, metadata, number, Column("study", NAME, nullable=False), *columns, of)


def _of_trial(name: str, *columns: Column[Any]) -> Table:
    """A table of rows that go with their trial; `columns` complete the key."""
    of = ForeignKeyConstraint(["study", "number"], ["agft_trial.study", "agft_trial.number"], ondelete="CASCADE")
    key = (Column(each, kind, primary_key=True) for each, kind in (("study", NAME), ("number", Integer)))
    return Table(name, metadata, *key, *columns, of)


# One row a study. `desired` is what users ask for, `state` what the driver last did about it. The lease is the right
# to drive: its token grows with every new driver, and every write of a driver is refused once its token is old.
studies = Table(
    "agft_study",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("spec", Text, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("desired", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("driven_seconds", Float, nullable=False, default=0.0),
    Column("token", Integer, nullable=False, default=0),
    Column("lease_owner", String(255)),
    Column("lease_expires", Float),
    Column("baseline", JSON),
    Column("provenance", JSON),
    Column("budget", JSON),  # instead of the spec's, once it was raised
    Column("message", Text),  # why the study is in this state
    Column("lag", Integer),  # trial n knows trials 0 ... n-1-lag; set by the first driver
    Column("starts", JSON),  # the given trials, resolved once: prior studies may change
    Column("extended_at", Integer, nullable=False, server_default="0"),  # trials there were when the budget was raised
)

# One row a trial.
trials = Table(
    "agft_trial",
    metadata,
    Column("study", NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", String(16), nullable=False),  # running, complete, pruned, failed, dropped
    Column("params", JSON, nullable=False),
    Column("config", JSON, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("stop_reason", Text),
    Column("failure_kind", String(32)),
    Column("latest", JSON),
    Column("best", JSON),
    Column("rerun_of", Integer),
    Column("origin", Text),  # of a given trial; null: it was proposed
    Column("memory", JSON),  # what the sampler keeps with it, by attribute
    Column("dropped_at", Integer),  # trials from this number on do not know it
    Column("state_before", String(16)),  # what it had ended as when it was dropped
    Column("finishing", Boolean, nullable=False, server_default=no()),  # stopped, and then trained to its end
    ForeignKeyConstraint(["study"], ["agft_study.name"], ondelete="CASCADE"),
)

# One row for every time a driver started a trial: what it cost, and how it ended.
attempts = _of_trial(
    "agft_attempt",
    Column("token", Integer, primary_key=True),
    Column("started_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Column("device_seconds", Float, nullable=False, default=0.0),
    Column("outcome", String(32)),
    Column("provenance", JSON),
)

epochs = _of_trial(
    "agft_epoch",
    Column("epoch", Integer, primary_key=True),
    Column("record", JSON, nullable=False),
)

verdicts = _of_trial(
    "agft_verdict",
    Column("epoch", Integer, primary_key=True),
    Column("decision", String(16), nullable=False),
    Column("reason", Text, nullable=False),
)

# How far a running trial is inside an epoch, as it last said: of the moment, and in no archive.
signs = _of_trial("agft_sign", Column("sign", JSON, nullable=False))

# One row for every promotion: `name` is a random one of its own, `owner` the process that made it.
promotions = _of_study(
    "agft_promotion",
    Column("started_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),  # started, promoted, kept, refused, superseded, broken
    Column("record", JSON),
    Column("name", String(32), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("ended_ms", BigInteger),
)

# One row for every look at the final sets, written before it happens.
final_accesses = _of_study(
    "agft_final_access",
    Column("promotion", String(32)),  # its name
    Column("at_ms", BigInteger, nullable=False),
    Column("model", Text, nullable=False),
    Column("sets", JSON, nullable=False),
)

# What users ask of a study's trials (rerun, drop), obeyed by whoever drives it, in this order, each once; and how its
# budget was raised (extend: `number` trials there were, by how much the note says).
requests = _of_study(
    "agft_request",
    Column("kind", String(16), nullable=False),
    Column("number", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("asked_ms", BigInteger, nullable=False),
    Column("done_ms", BigInteger),
    Column("outcome", Text),
)
