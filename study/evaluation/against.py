"""`agft report EVALUATION --against ...`: our numbers beside published ones, or beside another model's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra import storage
from study.console import say
from study.errors import UserError
from study.evaluation.published import MEAN, SAME, Published, published, standing
from study.markdown import escaped
from study.session import storage_here
from study.statistics import holm, image_difference, means, right_of_each
from trainers.evaluation.record import AtRadius, EvaluationRecord
from trainers.schema.suite import SUITES
from trainers.schema.units import eps_label

# Our numbers beside published ones: as JSON values, and as a page in Markdown.

REFERENCE = "AGFT"  # the method whose numbers ours are subtracted from on the page


def against_paper(records: Sequence[EvaluationRecord]) -> dict[str, Any]:
    """Every published table, as JSON values: comparable or why not, theirs, ours, and the differences in points."""
    tables = []
    for table in published():
        found = standing(table, records)
        ours = {} if found.barrier else _ours(table, found.records)
        tables.append(
            {
                **table.model_dump(mode="json", exclude={"measured_on"}),
                "barrier": found.barrier,
                "differences": list(found.differences),
                "attack_label": found.records[0].attack_label if found.records and table.attack else None,
                "ours": ours,
                "points_above": {method: _points(ours, rows) for method, rows in table.rows.items()} if ours else {},
                "missing_sets": [] if found.barrier else [name for name in table.datasets if name not in ours],
            }
        )
    return {"model": records[0].model.model_dump(mode="json"), "tables": tables}


def _points(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, float]) -> dict[str, float]:
    """Only where both are known."""
    return {name: round(100 * ours[name]["accuracy"] - value, 2) for name, value in theirs.items() if name in ours}


def _ours(table: Published, records: Sequence[EvaluationRecord]) -> dict[str, dict[str, Any]]:
    """Dataset -> our accuracy and interval; `mean` only if every set of the table's mean was measured."""
    values = {record.dataset.name: record.clean if table.attack is None else _at(table, record).robust
              for record in records}  # fmt: skip
    found: dict[str, dict[str, Any]] = {name: value.model_dump(mode="json") for name, value in values.items()}
    if values.keys() >= set(table.datasets):
        attack, eps = (
            ("clean", None) if table.attack is None else (records[0].attack_label, _at(table, records[0]).label)
        )
        whole = next(mean for mean in means(records) if (mean.attack, mean.eps) == (attack, eps))
        found[MEAN] = {"accuracy": whole.accuracy, "low": whole.low, "high": whole.high}
    return found


def _at(table: Published, record: EvaluationRecord) -> AtRadius:
    assert table.attack is not None, "asked for under attack only"
    assert table.attack.eps is not None, "what is compared has a radius"
    return next(at for at in record.radii if abs(at.eps - table.attack.eps) < SAME)


def lines_of_paper(found: Mapping[str, Any]) -> list[str]:
    """For a person: tables that can be compared, then those that cannot, by the reason."""
    model = found["model"]
    lines = [f"# {model['label']} ({model['arch']}) beside published numbers", ""]
    comparable = [table for table in found["tables"] if not table["barrier"]]
    if not comparable:
        lines += ["**Nothing published can be compared with these records.** Why, table by table:", ""]
    for table in comparable:
        lines += [*_comparison(table, model["label"]), ""]
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for table in found["tables"]:
        if table["barrier"]:
            reasons.setdefault(table["barrier"], []).append(table)
    if reasons:
        lines += ["## Not comparable", "", "Published means in percent, for what they are worth.", ""]
    for reason, tables in reasons.items():
        lines += [f"Because {reason}:", "", *map(_mention, tables), ""]
    return lines[:-1]


def _comparison(table: Mapping[str, Any], label: str) -> list[str]:
    """A published table with ours beside it, and everything in which they differ."""
    under = f" (ours: {table['attack_label']})" if table["attack_label"] else ""
    told = [f"{table['source']}, table {table['id'].partition(': ')[2]}. Read in: {table['read']}."]
    if table["note"]:
        told.append(f"{table['note']}.")
    lines = [f"## {table['what']}{under}", "", " ".join(told), "", *_table(table, label), "", "What differs:", ""]
    lines += [f"- {each}" for each in table["differences"]]
    if table["missing_sets"]:
        sets = SUITES[table["sets"]][0].datasets
        missing = f"{len(table['missing_sets'])} of {len(sets)} sets were not measured"
        lines.append(f"- no mean of ours: {missing} ({', '.join(table['missing_sets'])})")
    return lines


def _table(table: Mapping[str, Any], label: str) -> list[str]:
    """Sets as rows; methods, ours and the difference as columns; what was never obtained is a dash."""
    methods, ours, points = list(table["rows"]), table["ours"], table["points_above"].get(REFERENCE)
    theirs = {name for rows in table["rows"].values() for name in rows}
    names = [name for name in (*SUITES[table["sets"]][0].datasets, MEAN) if name in theirs or name in ours]
    titles = ["set", *methods, f"{escaped(label)} [95 %]", *(["less AGFT"] if points else [])]
    lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(['---'] + ['---:'] * (len(titles) - 1))} |"]
    for name in names:
        cells = [name, *(_number(table, method, name) for method in methods), _value(ours.get(name))]
        if points:
            cells.append(f"{points[name]:+.1f}" if name in points else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mention(table: Mapping[str, Any]) -> str:
    """A table that nothing is compared with, in a line."""
    eps = (table["attack"] or {}).get("eps")
    at = "" if eps is None else f" at {eps_label(eps)}"
    values = "; ".join(f"{name} {_number(table, name, MEAN)}" for name in table["rows"])
    note = f" ({table['note']})" if table["note"] else ""
    return f"- {table['source']}. {table['what']}{at}, fine-tuned on {table['trained']}: {values}{note}"


def _number(table: Mapping[str, Any], method: str, name: str) -> str:
    value = table["rows"][method].get(name)
    return "-" if value is None else f"{value:.{table['decimals']}f}"


def _value(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['accuracy']:.2f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


PAPER = "paper"
S3 = "s3://"


def report_against(one: str, against: str, home: Path, *, as_json: bool) -> str:
    """`one` beside published numbers (`paper`) or another evaluation: Markdown, or JSON."""
    one, against = (address.rstrip("/") for address in (one, against))
    if any(address.startswith(S3) for address in (one, against)):
        storage_here(home, say, start=False)
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
        rows.append({"attack": attack, "eps": eps, **asdict(image_difference(*sides))})
    tests = [(row, name) for row in rows for name in row["p"]]
    adjusted = holm([row["p"][name] for row, name in tests])
    for (row, name), p in zip(tests, adjusted, strict=True):
        row.setdefault("p_holm", {})[name] = p
    first, second = (next(iter(found.values())).model for found in (mine, theirs))
    return {"one": first.model_dump(mode="json"), "other": second.model_dump(mode="json"), "rows": rows}


CLEAR = 0.05  # an adjusted p below it is called a difference


def lines_of_other(found: Mapping[str, Any]) -> list[str]:
    """For a person, in Markdown: the means over sets, then every set with its test."""
    one, other = found["one"]["label"], found["other"]["label"]
    tests = sum(len(row["p"]) for row in found["rows"])
    lines = [f"# {escaped(one)} less {escaped(other)}, on the same images", "",
             "Means over the sets, in points, each with a 95 % interval of its own (Bonett and Price 2012). The last "
             f"column names sets with p < {CLEAR:g} after Holm's correction for the {tests} tests of this page.", "",
             "| attack | radius | difference | only the one right | only the other | sets that differ |",
             "| --- | --- | ---: | ---: | ---: | --- |"]  # fmt: skip
    for row in found["rows"]:
        clear = ", ".join(escaped(name) for name, p in row["p_holm"].items() if p < CLEAR) or "none"
        lines.append(f"| {' | '.join(_column(row))} | {100 * row['mean']:+.2f} [{100 * row['low']:+.2f}, "
                     f"{100 * row['high']:+.2f}] | {sum(row['only_one'].values()):,} | "
                     f"{sum(row['only_other'].values()):,} | {clear} |")  # fmt: skip
    lines += ["", "McNemar's exact test on every set, for itself alone and after Holm (Scand. J. Stat. 6, 1979).", "",
              "| attack | radius | set | only the one right | only the other | p | p, Holm |",
              "| --- | --- | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for row in found["rows"]:
        for name, p in row["p"].items():
            counts = f"{row['only_one'][name]:,} | {row['only_other'][name]:,}"
            own = " | ".join(_column(row))
            lines.append(f"| {own} | {escaped(name)} | {counts} | {p:.2g} | {row['p_holm'][name]:.2g} |")
    return lines


def _column(row: Mapping[str, Any]) -> tuple[str, str]:
    """Which attack and radius; without attack, on whose sample."""
    return ("none (clean)", f"sample of {row['attack']}") if row["eps"] is None else (row["attack"], row["eps"])
