"""Rows of our tables as typed values, whether a database or a file gives them. Runs no code of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from study.errors import StudyFailed
from study.spec.config import StudyConfig, load_canonical
from study.store.rows import Attempt, StudyRow, TrialRow
from trainers.schema.records import EpochRecord, Measurement, Weights

M = TypeVar("M", bound=BaseModel)
Rows = Sequence[Mapping[str, Any]]


def read_json(kind: type[M], value: Any, place: str) -> M:
    """What a JSON column holds; `StudyFailed`, which names its place, if that is nothing of ours."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StudyFailed(f"{place}: {where}: {first['msg']}; not what this version writes") from None


def study_row(row: Mapping[str, Any], lease_seconds: float) -> StudyRow:
    """A row of the table of studies; `lease_seconds`: what is left of its lease."""
    fields = {name: value for name, value in row.items() if name not in ("lease_expires", "budget")}
    fields["starts"] = None if row["starts"] is None else tuple(row["starts"])
    if row["baseline"] is not None:
        fields["baseline"] = read_json(Measurement, row["baseline"], f"study {row['name']!r}: baseline")
    return StudyRow(**{**fields, "spec": spec_of(row)}, lease_seconds=lease_seconds)


def spec_of(row: Mapping[str, Any]) -> StudyConfig:
    """The specification, with the budget of now."""
    spec = load_canonical(row["spec"])
    if not row["budget"]:
        return spec
    return spec.model_copy(update={"budget": type(spec.budget).model_validate(row["budget"])})


def trial_rows(name: str, trials: Rows, epochs: Rows, verdicts: Rows, attempts: Rows) -> list[TrialRow]:
    """Trials of study `name` by number, from the rows of four tables, each in the order of its key."""
    histories, decided, tried = (_by_number(rows) for rows in (epochs, verdicts, attempts))
    found = []
    for row in sorted(trials, key=lambda row: row["number"]):
        number = row["number"]
        fields = {key: value for key, value in row.items() if key != "study"}
        place = f"study {name!r}: trial {number}"
        for role in ("latest", "best"):
            if fields[role] is not None:
                fields[role] = read_json(Weights, fields[role], f"{place}: {role}")
        history = [
            read_json(EpochRecord, each["record"], f"{place}: epoch {each['epoch']}")
            for each in histories.get(number, [])
        ]
        judged = decided.get(number, [])
        found.append(
            TrialRow(
                **fields,
                epochs=tuple(history),
                verdicts={each["epoch"]: each["decision"] for each in judged},
                reasons={each["epoch"]: each["reason"] for each in judged},
                attempts=tuple(_attempt(each) for each in tried.get(number, [])),
            )
        )
    return found


def _by_number(rows: Rows) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["number"], []).append(row)
    return found


def _attempt(row: Mapping[str, Any]) -> Attempt:
    return Attempt(**{name: row[name] for name in Attempt.__dataclass_fields__})


@dataclass(frozen=True)
class Stored:
    """All that is stored of one study, frozen at one moment.

    `filed`: the specification as its file had it, before its budget was raised; `sums`: of a file, the SHA-256 that it
    carries and the one that it has.
    """

    study: StudyRow
    filed: StudyConfig
    trials: tuple[TrialRow, ...]
    requests: tuple[Mapping[str, Any], ...]
    promotions: tuple[Mapping[str, Any], ...]
    accesses: tuple[Mapping[str, Any], ...]
    sums: tuple[str | None, str] | None = None
