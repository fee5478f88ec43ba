"""Our numbers beside published ones: as JSON values, and as a page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from study.evaluation_stats import means
from study.published import MEAN, Published, published
from study.standing import SAME, standing
from trainers.result import AtRadius, EvaluationRecord
from trainers.suite import SUITES
from trainers.units import eps_label

__all__ = ["against_paper", "lines_of_paper"]

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
    titles = ["set", *methods, f"{label} [95 %]", *(["less AGFT"] if points else [])]
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
    return f"- {table['source']}. {table['what']}{at}, fine-tuned on {table['trained']}: {values}"


def _number(table: Mapping[str, Any], method: str, name: str) -> str:
    value = table["rows"][method].get(name)
    return "-" if value is None else f"{value:.{table['decimals']}f}"


def _value(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value['accuracy']:.2f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
