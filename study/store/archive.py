"""A study as one JSON file: out of one database and into another, with everything that our tables hold of it.

Checkpoints stay where they are, named by their addresses and SHA-256; Optuna's study is built from the trials by the
next driver. Reading a file runs no code from it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from study.errors import StudyFailed, UserError
from study.spec.config import load_canonical
from study.store import tables as t
from study.store.database import transaction
from study.store.store import StudyStore, read_json, study_names
from trainers.schema.records import EpochRecord, Measurement, Weights

FORMAT = "agft-study/1"
TABLES = (t.trials, t.attempts, t.epochs, t.verdicts, t.promotions, t.final_accesses, t.requests)


def export_study(store: StudyStore, path: Path) -> dict[str, int]:
    """Write the study to `path`, atomically; rows by table. It may be driven meanwhile: one transaction reads it."""
    store.load()  # an unknown name is answered with the nearest
    with transaction(store.engine) as connection:
        study = connection.execute(sa.select(t.studies).where(t.studies.c.name == store.name)).one()._asdict()
        rows = {
            table.name: [
                row._asdict()
                for row in connection.execute(
                    sa.select(table).where(table.c.study == store.name).order_by(*table.primary_key.columns)
                )
            ]
            for table in TABLES
        }
    for name in ("lease_owner", "lease_expires"):
        study.pop(name)
    text = json.dumps({"format": FORMAT, "study": study, "rows": rows}, indent=1)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return {name: len(found) for name, found in rows.items()}


def import_study(url: str, path: Path, *, name: str | None = None) -> str:
    """Put the study of a file into the database at `url`; its name there. `UserError` for a wrong file or a taken name.

    Unfinished trials go on from their checkpoints, if this side reaches the same bucket.
    """
    content = _read(path)
    study, rows = content["study"], content["rows"]
    taken = study_names(url)
    chosen = study["name"] if name is None else name
    if chosen in taken:
        raise UserError(f"study {chosen!r} exists in this database; give another name: --name {chosen}-imported")
    spec = load_canonical(study["spec"])
    if name is not None:
        spec = spec.renamed(name)
    store = StudyStore(url, chosen)
    values = {**study, "name": chosen, "spec": spec.canonical(), "spec_hash": spec.spec_hash(), "desired": "run"}
    if values["state"] == "running":
        values |= {"state": "paused", "message": "imported"}
    with transaction(store.engine) as connection:
        connection.execute(sa.insert(t.studies).values(**values))
        for table in TABLES:
            serial = "id" in table.columns
            for row in rows[table.name]:
                row = {key: value for key, value in row.items() if not (serial and key == "id")}
                if row.get("memory"):  # Optuna unpickles what CMA-ES keeps: derived here, never taken from a file
                    row |= {"memory": None}
                connection.execute(sa.insert(table).values(**{**row, "study": chosen}))
    return chosen


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file: {error}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: not a study written by `agft archive` (format {found!r}, expected {FORMAT!r})")
    try:
        _check(content)
    except (KeyError, TypeError, ValueError, StudyFailed) as error:
        raise UserError(f"{path}: the study in it cannot be read: {' '.join(str(error).split())[:300]}") from None
    return content


def _check(content: dict[str, Any]) -> None:
    """Everything that the store will give out again is of its type. `ValueError` or `StudyFailed` if not."""
    study, rows = content["study"], content["rows"]
    load_canonical(study["spec"])
    if study["baseline"] is not None:
        read_json(Measurement, study["baseline"], "baseline")
    for table in TABLES:
        for row in rows[table.name]:
            if row.keys() != set(table.columns.keys()):
                raise ValueError(f"{table.name}: columns {', '.join(row)}")
    for row in rows[t.trials.name]:
        for role in ("latest", "best"):
            if row[role] is not None:
                read_json(Weights, row[role], f"trial {row['number']}: {role}")
    for row in rows[t.epochs.name]:
        read_json(EpochRecord, row["record"], f"trial {row['number']}: epoch {row['epoch']}")
