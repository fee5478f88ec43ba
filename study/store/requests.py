"""What users ask of a study: run a trial again, take one out; whoever drives it obeys each once. Raise its budget."""

from __future__ import annotations

import json
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
    return _insert(store, t.requests, "asked_ms", kind=kind, number=number, note=note)


IN_LINE = "in line again"  # the answer to a request to run a trial again


@patient
def to_run_again(store: StudyStore) -> list[int]:
    """Trials that were asked for again, as often as that was granted, oldest first. Repetitions start in this order."""
    rows = _all(store, t.requests, t.requests.c.kind == "rerun", t.requests.c.outcome == IN_LINE)
    return [int(row["number"]) for row in rows]


EXTENDED = "extended"


def keep_extension(connection: sa.Connection, study: str, trials: int, more: Mapping[str, float]) -> None:
    """Write down that the budget was raised, by how much (trials, hours, gpu_hours), when there were so many trials.

    It asks nobody for anything: an `extend` is answered as it is written.
    """
    clock = int(now(connection) * 1000)
    values = {"number": trials, "note": json.dumps(dict(more)), "asked_ms": clock, "done_ms": clock}
    connection.execute(sa.insert(t.requests).values(study=study, kind="extend", outcome=EXTENDED, **values))


def _insert(store: StudyStore, table: sa.Table, stamp: str, **values: Any) -> int:
    """A new row of the study, with the database's time in column `stamp`; its id."""
    with transaction(store.engine) as connection:
        clock = int(now(connection) * 1000)
        result = connection.execute(sa.insert(table).values(study=store.name, **values, **{stamp: clock}))
        return int(result.inserted_primary_key[0])  # type: ignore[index]


def _all(store: StudyStore, table: sa.Table, *where: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
    """Rows of the study as dictionaries, oldest first."""
    asked = sa.select(table).where(table.c.study == store.name, *where).order_by(table.c.id)
    with store.engine.connect() as connection:
        return [row._asdict() for row in connection.execute(asked)]


def pending(store: StudyStore) -> list[dict[str, Any]]:
    """Requests that nobody has dealt with yet, oldest first: `{id, kind, number, note, asked_ms}`."""
    return _all(store, t.requests, t.requests.c.done_ms.is_(None))


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
    _insert(store, t.promotions, "started_ms", state="started", name=name, owner=owner_identity())
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
    return _all(store, t.promotions)


def count_access(store: StudyStore, promotion: str | None, *, model: str, sets: Sequence[str]) -> None:
    """One look at the final sets, counted before it happens, whatever becomes of it."""
    _insert(store, t.final_accesses, "at_ms", promotion=promotion, model=model, sets=list(sets))


def accesses(store: StudyStore) -> list[dict[str, Any]]:
    """Every look at the final sets of this study so far, oldest first."""
    return _all(store, t.final_accesses)
