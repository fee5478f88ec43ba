"""What users ask of a study's trials: run one again, take one out. Whoever drives the study obeys each once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from study.store import tables as t
from study.store.database import now, patient, transaction
from study.store.lease import owner_identity, owner_is_gone
from study.store.store import StudyStore


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


# Promotions in the study's database: what each decided, with its numbers, and every access to the final sets.


def start(store: StudyStore) -> str:
    """A new promotion, in state `started`; its name, which no other one has."""
    name = secrets.token_hex(8)
    with transaction(store.engine) as connection:
        clock = int(now(connection) * 1000)
        connection.execute(
            sa.insert(t.promotions).values(
                study=store.name, started_ms=clock, state="started", name=name, owner=owner_identity()
            )
        )
    return name


def end(store: StudyStore, name: str, state: str, record: Mapping[str, Any]) -> None:
    """Keep its outcome (promoted, kept, refused, superseded, broken) with every number that led to it."""
    with transaction(store.engine) as connection:
        clock = int(now(connection) * 1000)
        connection.execute(
            sa.update(t.promotions)
            .where(t.promotions.c.name == name)
            .values(state=state, record=dict(record), ended_ms=clock)
        )


def settle(store: StudyStore, moved: Callable[[], Collection[str]]) -> list[str]:
    """Say of promotions whose process is gone how they ended: those among `moved()` did promote; the states given."""
    dead = [row for row in promotions(store) if row["state"] == "started" and owner_is_gone(row["owner"])]
    names = moved() if dead else ()
    states = []
    for row in dead:
        states.append("promoted" if row["name"] in names else "broken")
        end(store, row["name"], states[-1], {**(row["record"] or {}), "reason": "its process ended without a word"})
    return states


def promotions(store: StudyStore) -> list[dict[str, Any]]:
    """All of this study, oldest first."""
    with store.engine.connect() as connection:
        rows = connection.execute(
            sa.select(t.promotions).where(t.promotions.c.study == store.name).order_by(t.promotions.c.id)
        )
        return [row._asdict() for row in rows]


def count_access(store: StudyStore, promotion: str | None, *, model: str, sets: Sequence[str]) -> None:
    """One look at the final sets, counted before it happens, whatever becomes of it."""
    with transaction(store.engine) as connection:
        clock = int(now(connection) * 1000)
        values = {"study": store.name, "promotion": promotion, "at_ms": clock, "model": model, "sets": list(sets)}
        connection.execute(sa.insert(t.final_accesses).values(**values))


def accesses(store: StudyStore) -> list[dict[str, Any]]:
    """Every look at the final sets of this study so far, oldest first."""
    with store.engine.connect() as connection:
        rows = connection.execute(
            sa.select(t.final_accesses).where(t.final_accesses.c.study == store.name).order_by(t.final_accesses.c.id)
        )
        return [row._asdict() for row in rows]
