"""What a person reads of an evaluation: clean and robust accuracy of every set, with what cannot be trusted marked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from study.evaluation.units import Evaluation
from study.markdown import escaped
from study.statistics import Mean, means
from trainers.evaluation.record import EvaluationRecord, Proportion

SANITY_PAGE = "docs/sanity.md"
MARK = "!"
Row = list[tuple[str, str]]


def by_dataset(records: Sequence[EvaluationRecord]) -> dict[str, list[EvaluationRecord]]:
    """In the order of the suite."""
    found: dict[str, list[EvaluationRecord]] = {}
    for record in records:
        found.setdefault(record.dataset.name, []).append(record)
    return found


def accuracy_rows(records: Sequence[EvaluationRecord]) -> list[dict[str, Any]]:
    """One row a dataset, as JSON values: clean accuracy on the largest sample, and every attack's at every radius."""
    rows = []
    for name, group in by_dataset(records).items():
        largest = max(group, key=lambda record: record.clean.total)
        rows.append(
            {
                "dataset": name,
                "clean": largest.clean.model_dump(mode="json"),
                "robust": [
                    {"attack": record.attack_label, "eps": at.label, **at.robust.model_dump(mode="json")}
                    for record in group
                    for at in record.radii
                ],
                "failed_checks": sorted({check for record in group for check in record.failed_checks}),
                "doubts": sorted({doubt for record in group for doubt in record.doubts}),
            }
        )
    return rows


def summary(evaluation: Evaluation, records: Sequence[EvaluationRecord], out: str) -> dict[str, Any]:
    """All of it as JSON values."""
    return {
        "model": evaluation.model.label,
        "weights_sha256": evaluation.model.weights_sha256,
        "suite": evaluation.suite.name,
        "protocol": evaluation.suite.protocol,
        "out": out,
        "datasets": accuracy_rows(records),
        "means": [mean.as_json() for mean in means(records, evaluation.suite.source)],
        "failed_checks": failed_checks(records),
    }


def table_cells(records: Sequence[EvaluationRecord], source: Collection[str]) -> tuple[list[str], list[Row]]:
    """Titles, and a row a dataset, then their means: each cell a value and, in brackets, its 95 % interval, or nothing.

    An attack has an `n` of its own where it was given fewer images than the others.
    """
    groups = by_dataset(records)
    largest = {name: max(group, key=lambda record: record.clean.total) for name, group in groups.items()}
    attacks = list(dict.fromkeys(record.attack_label for record in records))
    fewer = {record.attack_label for record in records if record.clean.total < largest[record.dataset.name].clean.total}
    titles, rows = ["dataset", "n", "clean"], []
    for label in attacks:
        own = next(record for record in records if record.attack_label == label)
        titles += ["n"] * (label in fewer) + [f"{label}\n{at.label}" for at in own.radii]
    for name, group in groups.items():
        clean = largest[name].clean
        bad = f" {MARK}" if any(record.failed_checks or record.doubts for record in group) else ""
        row = [(f"{name}{bad}", ""), (f"{clean.total:,}", ""), _cell(clean)]
        for record in sorted(group, key=lambda record: attacks.index(record.attack_label)):
            row += [(f"{record.clean.total:,}", "")] * (record.attack_label in fewer)
            row += [_cell(at.robust) for at in record.radii]
        rows.append(row)
    return titles, rows + _mean_rows(records, source, fewer)


def _mean_rows(records: Sequence[EvaluationRecord], source: Collection[str], fewer: Collection[str]) -> list[Row]:
    """Of all sets, and of those that are not like what models are fine-tuned on; of one set alone there is no mean."""
    rows = []
    found = means(records, source)
    for whole in (True, False):
        own = [mean for mean in found if mean.source == whole]
        if own and len(own[0].sets) > 1:
            rows.append([("mean" if whole else f"mean without {', '.join(source)}", ""), ("", "")])
            counted = set()
            for mean in own:
                rows[-1] += [("", "")] * (mean.attack in fewer and mean.attack not in counted) + [_cell(mean)]
                counted.add(mean.attack)
    return rows


def _cell(value: Proportion | Mean) -> tuple[str, str]:
    """In percent."""
    return f"{100 * value.accuracy:.1f}", f"[{100 * value.low:.1f}, {100 * value.high:.1f}]"


def summary_table(evaluation: Evaluation, records: Sequence[EvaluationRecord]) -> Table:
    """For a terminal."""
    table = Table(title=f"{_title(evaluation)}, 95 % interval", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    titles, rows = table_cells(records, evaluation.suite.source)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text.assemble(value, (f" {interval}" if interval else "", "dim")) for value, interval in row))
    return table


def markdown_table(evaluation: Evaluation, records: Sequence[EvaluationRecord], *, intervals: bool) -> str:
    """For MLflow's pages, of which some are narrow."""
    titles, rows = table_cells(records, evaluation.suite.source)
    lines = [escaped(_title(evaluation)), ""]
    lines += [f"| {' | '.join(map(escaped, titles))} |"]
    lines += [f"| {' | '.join(['---'] + ['---:'] * (len(titles) - 1))} |"]
    for (name, _), *row in rows:
        cells = [escaped(name)] + [f"{value} {interval}".strip() if intervals else value for value, interval in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _title(evaluation: Evaluation) -> str:
    suite = evaluation.suite
    return f"{evaluation.model.label} on suite {suite.name}, protocol {suite.protocol}: accuracy in %"


def remarks(records: Sequence[EvaluationRecord]) -> list[str]:
    """Lines below the table: failed checks, what attacks themselves doubt, classes that cannot be told apart."""
    lines = failed_checks(records)
    for name, group in by_dataset(records).items():
        doubts = {(record.attack_label, doubt) for record in group for doubt in record.doubts}
        lines += [f"{MARK} {name}: {attack} doubts its result: {doubt}" for attack, doubt in sorted(doubts)]
    for name, group in by_dataset(records).items():
        facts = group[0].dataset
        if alike := sum(map(len, facts.duplicate_prompts)):
            lines.append(f"{name}: {alike:,} of {facts.num_classes:,} classes have equal prompts; of such a group all "
                         "but one are hardly ever predicted")  # fmt: skip
    return lines


def failed_checks(records: Sequence[EvaluationRecord]) -> list[str]:
    """A line for every sanity check that failed, and where to read what it means."""
    findings = {(f.name, f.message): f for record in records for f in record.sanity if f.outcome == "failed"}
    return [f"{MARK} {f.name} failed: {f.message} ({SANITY_PAGE}#{f.anchor})" for f in findings.values()]
