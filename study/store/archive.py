"""A study as one JSON file: out of one database and into another, with everything that our tables hold of it.

Checkpoints stay where they are, named by their addresses and SHA-256; Optuna's study is built from the trials by the
next driver. Reading a file runs no code from it. A file carries the SHA-256 of its own content (`seal`), so that a
number that was changed by accident is found; whoever changes one on purpose can write the sum anew, which is what
`agft audit` is for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from study.errors import StudyFailed, UserError
from study.spec.config import load_canonical
from study.store import tables as t
from study.store.database import transaction
from study.store.store import StudyStore, study_names
from study.store.typed import Stored, read_json, study_row, trial_rows
from trainers.schema.records import EpochRecord, Measurement, Weights

FORMAT, SUM = "agft-study/1", "sha256"
LARGEST_BYTES = 1 << 30  # of a file: a study of a million epochs has less
OF_TRIAL = (t.trials, t.attempts, t.epochs, t.verdicts)
TABLES = (*OF_TRIAL, t.promotions, t.final_accesses, t.requests)


def content_of(store: StudyStore) -> dict[str, Any]:
    """Everything that our tables hold of the study, at one moment; it may be driven meanwhile."""
    store.load()  # an unknown name is answered with the nearest
    with transaction(store.engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
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
    return {"format": FORMAT, "study": study, "rows": rows}


def seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of a file's content but for the sum itself: of its JSON with sorted keys and no spaces."""
    plain = {key: value for key, value in content.items() if key != SUM}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_sum(content: Mapping[str, Any], place: str) -> None:
    """`UserError` where a file, found at `place`, is not as it was written."""
    if content.get(SUM) != seal(content):
        raise UserError(
            f"{place}: not as `agft archive` wrote it: its content has SHA-256 {seal(content)[:12]}..., and it says "
            f"{str(content.get(SUM))[:12]}...; `agft audit` of the file names the first place that does not follow"
        )


def is_archive(path: Path) -> bool:
    """Whether a file begins as those that `export_study` writes."""
    with path.open("rb") as file:
        return FORMAT.encode() in file.read(200)


def export_study(store: StudyStore, path: Path) -> dict[str, int]:
    """Write the study to `path`, atomically; rows by table."""
    content = content_of(store)
    text = json.dumps({**content, SUM: seal(content)}, indent=1)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return {name: len(found) for name, found in content["rows"].items()}


def stored_of(store: StudyStore) -> Stored:
    """All that a database holds of a study."""
    return _stored(content_of(store))


def stored_in(path: Path) -> Stored:
    """All that a file holds of a study; no database is asked. `UserError` for what is no archive.

    What samplers kept with their trials is left out: a file is not trusted with it.
    """
    content = _read(path)
    sums = content.get(SUM), seal(content)
    for row in content["rows"][t.trials.name]:
        row["memory"] = None
    return _stored(content, sums=sums)


def _stored(content: Mapping[str, Any], sums: tuple[str | None, str] | None = None) -> Stored:
    study, rows = {"lease_owner": None, **content["study"]}, content["rows"]
    own = (rows[table.name] for table in (t.trials, t.epochs, t.verdicts, t.attempts))
    requests, promotions, accesses = (tuple(rows[table.name]) for table in (t.requests, t.promotions, t.final_accesses))
    trials = tuple(trial_rows(study["name"], *own))
    return Stored(
        study_row(study, 0.0), load_canonical(study["spec"]), trials, requests, promotions, accesses, sums=sums
    )


def import_study(url: str, path: Path, *, name: str | None = None) -> str:
    """Put the study of a file into the database at `url`; its name there. `UserError` for a wrong file or a taken name.

    Unfinished trials go on from their checkpoints, if this side reaches the same bucket.
    """
    content = _read(path)
    check_sum(content, str(path))
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
        if path.exists() and not path.is_file():
            raise ValueError("a folder, pipe or device")
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes; at most {LARGEST_BYTES:,}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
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
    if study.keys() != set(t.studies.columns.keys()) - {"lease_owner", "lease_expires"}:
        raise ValueError(f"{t.studies.name}: columns {', '.join(study)}")
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
        place = f"trial {row['number']}: epoch {row['epoch']}"
        if read_json(EpochRecord, row["record"], place).epoch != row["epoch"]:
            raise ValueError(f"{place}: its record is of epoch {row['record']['epoch']}")
    numbers = {row["number"] for row in rows[t.trials.name]}
    for table in OF_TRIAL:
        names = [column.name for column in table.primary_key.columns if column.name != "study"]
        keys = [tuple(row[name] for name in names) for row in rows[table.name]]
        if twice := next((key for key, times in Counter(keys).items() if times > 1), None):
            raise ValueError(f"{table.name}: {twice} is there twice")
        if stray := next((key for key in keys if key[0] not in numbers), None):
            raise ValueError(f"{table.name}: {stray}: there is no such trial")
