"""What users ask of a study's trials: run one again, take one out. Whoever drives the study obeys each once."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from study import tables as t
from study.database import now, patient, transaction
from study.store import StudyStore

__all__ = ["answer", "ask", "pending"]


def ask(store: StudyStore, kind: str, number: int, note: str) -> int:
    """Ask for a trial to be run again (`rerun`) or taken out (`drop`); the request's id."""
    with transaction(store.engine) as connection:
        values = {"study": store.name, "kind": kind, "number": number, "note": note}
        clock = int(now(connection) * 1000)
        result = connection.execute(sa.insert(t.requests).values(**values, asked_ms=clock))
        return int(result.inserted_primary_key[0])  # type: ignore[index]


def pending(store: StudyStore) -> list[dict[str, Any]]:
    """Requests that nobody has dealt with yet, oldest first: `{id, kind, number, note, asked_ms}`."""
    asked = sa.select(t.requests).where(t.requests.c.study == store.name, t.requests.c.done_ms.is_(None))
    with store.engine.connect() as connection:
        return [row._asdict() for row in connection.execute(asked.order_by(t.requests.c.id))]


@patient
def answer(store: StudyStore, token: int, request: int, outcome: str) -> None:
    """A request is dealt with by the driver that holds `token`; `outcome` says how."""
    with store.fenced(token) as connection:
        clock = int(now(connection) * 1000)
        changed = {"done_ms": clock, "outcome": outcome}
        connection.execute(sa.update(t.requests).where(t.requests.c.id == request).values(**changed))
