"""`agft report EVALUATION --against ...`: our numbers beside published ones, or beside another model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from infra import storage
from study.errors import UserError
from study.evaluation_stats import paired_difference, right_of_each
from study.paper_report import against_paper, lines_of_paper
from study.sources import storage_here
from trainers.result import EvaluationRecord

__all__ = ["against_other", "lines_of_other", "read_records", "report_against"]

PAPER = "paper"
S3 = "s3://"


def report_against(one: str, against: str, home: Path, *, as_json: bool) -> str:
    """`one` beside published numbers (`paper`) or another evaluation: Markdown, or JSON."""
    one, against = (address.rstrip("/") for address in (one, against))
    if any(address.startswith(S3) for address in (one, against)):
        storage_here(home, lambda text: click.echo(text, err=True))
    if against == PAPER:
        found, lines = against_paper(list(read_records(one).values())), lines_of_paper
    else:
        found, lines = against_other(one, against), lines_of_other
    return json.dumps(found, indent=2) if as_json else "\n".join(lines(found))


def read_records(address: str) -> dict[str, EvaluationRecord]:
    """The records of an evaluation's folder or s3:// prefix, by the name of their files without `.json`."""
    found = {}
    for name in _names(address):
        try:
            found[name] = EvaluationRecord.model_validate_json(_read(address, f"{name}.json"))
        except ValidationError as error:
            raise UserError(f"{address}/{name}.json: not the record of an evaluation: {error}") from error
    if not found:
        raise UserError(f"{address}: no record of an evaluation is here (looked for records/DATASET/ATTACK.json)")
    return found


def _names(address: str) -> list[str]:
    """Of all records, without `.json`."""
    if address.startswith(S3):
        found = [each.uri.removeprefix(f"{address}/") for each in storage.list_objects(f"{address}/records")]
    else:
        found = [path.relative_to(address).as_posix() for path in Path(address).glob("records/*/*.json")]
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))


def _read(address: str, name: str) -> bytes:
    if address.startswith(S3):
        found = storage.get_bytes(f"{address}/{name}")
        if found is None:
            raise UserError(f"{address}/{name}: not there; evaluate again to have it made")
        return found[0]
    try:
        return (Path(address) / name).read_bytes()
    except OSError as error:
        raise UserError(f"{address}/{name}: {(error.strerror or str(error)).lower()}; evaluate again") from error


def against_other(one: str, other: str) -> dict[str, Any]:
    """Two evaluations on the same images: paired differences under every attack and radius that both have."""
    mine, theirs = read_records(one), read_records(other)
    if any(mine[name].conditions() != theirs[name].conditions() for name in mine.keys() & theirs.keys()):
        raise UserError(f"{other}: other images or another protocol than in {one}; only the same can be paired")
    columns: dict[tuple[str, str | None], list[str]] = {}
    for name in sorted(mine.keys() & theirs.keys()):
        radii = {at.label for at in mine[name].radii} & {at.label for at in theirs[name].radii}
        for label in [None, *(at.label for at in mine[name].radii if at.label in radii)]:
            columns.setdefault((mine[name].attack_label, label), []).append(name)
    if not columns:
        raise UserError(f"{other}: has no dataset and attack in common with {one}")
    rows = []
    for (attack, eps), names in columns.items():
        sides = [
            {mine[name].dataset.name: right_of_each(_read(address, f"{name}.csv.gz"), eps) for name in names}
            for address in (one, other)
        ]
        rows.append({"attack": attack, "eps": eps, **asdict(paired_difference(*sides))})
    first, second = (next(iter(found.values())).model for found in (mine, theirs))
    return {"one": first.model_dump(mode="json"), "other": second.model_dump(mode="json"), "rows": rows}


def lines_of_other(found: Mapping[str, Any]) -> list[str]:
    """For a person, in Markdown."""
    one, other = found["one"]["label"], found["other"]["label"]
    lines = [f"# {one} less {other}, on the same images", "",
             "Means over the sets, in points, with a 95 % interval of a bootstrap over the images of every set.", "",
             "| attack | radius | difference | only the one right | only the other | sets with p < 0.05 |",
             "| --- | --- | ---: | ---: | ---: | --- |"]  # fmt: skip
    for row in found["rows"]:
        clear = ", ".join(name for name, p in row["p"].items() if p < 0.05) or "none"
        what = ("none (clean)", f"sample of {row['attack']}") if row["eps"] is None else (row["attack"], row["eps"])
        lines.append(f"| {what[0]} | {what[1]} | {100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, "
                     f"{100 * row['high']:+.2f}] | {sum(row['only_one'].values()):,} | "
                     f"{sum(row['only_other'].values()):,} | {clear} |")  # fmt: skip
    return lines
