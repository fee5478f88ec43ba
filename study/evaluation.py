"""Evaluations on a Ray cluster: what is missing is computed unit by unit, kept at once, and made into records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from infra.provenance import provenance
from study.evaluation_ledger import Ledger
from study.evaluation_plan import Looked, cost, size
from study.evaluation_pool import Job
from study.evaluation_progress import Progress
from study.evaluation_record import image_rows, make_record
from study.evaluation_worker import Models
from trainers.data import safe_name
from trainers.result import EvaluationRecord, Finding
from trainers.suite import AttackAt

__all__ = ["Work", "finish", "missing_looks", "missing_work", "record_of"]

FIRST = 1e18  # cost of what is handed out before everything else: a failed check is worth knowing early

Run = Callable[[Sequence[Job], Callable[[Job, Any], None]], None]


@dataclass(frozen=True)
class Work:
    """A job, and what to do with its result."""

    job: Job
    keep: Callable[[Any], Any]
    share: float  # of the cost


def missing_looks(ledgers: Sequence[Ledger]) -> list[Work]:
    """Datasets that somebody has to look at first; one look serves all models."""
    found = []
    names = dict.fromkeys(name for each in ledgers for name in each.evaluation.suite.datasets)
    for name in names:
        needing = [each for each in ledgers if name not in each.looked]
        if needing:
            suite = needing[0].evaluation.suite.model_dump(mode="json")
            job = Job(f"looking at {name}", ("", name), 1.0, "look", (name, suite))
            found.append(Work(job, partial(_keep_look, needing, name), 0.0))
    return found


def _keep_look(ledgers: Sequence[Ledger], name: str, text: str) -> None:
    for ledger in ledgers:
        ledger.keep_looked(name, Looked.model_validate_json(text))


def missing_work(ledger: Ledger, *, checked: Sequence[str], batch_size: int | None) -> list[Work]:
    """Units that are not finished, and sanity checks on the datasets `checked`. Needs all looks."""
    evaluation = ledger.evaluation
    suite, found = evaluation.suite.model_dump(mode="json"), []
    for dataset in evaluation.suite.datasets:
        group = (evaluation.model.weights_sha256, dataset)
        for entry in evaluation.suite.attacks:
            for unit in ledger.missing(dataset, entry):
                num_classes = next(iter(ledger.looked[dataset].facts.values())).num_classes
                price = cost(unit, num_classes)
                arguments = (unit, _models(ledger, entry), suite, evaluation.digest, batch_size)
                job = Job(f"{evaluation.model.label}: {unit.name}", group, price, "measure", arguments)
                found.append(Work(job, partial(ledger.keep_unit, unit), price))
        if dataset in checked and dataset not in ledger.findings:
            first = evaluation.suite.attacks[0].model_dump(mode="json")
            name = f"{evaluation.model.label}: {safe_name(dataset)}/sanity"
            job = Job(name, group, FIRST, "check", (dataset, _models(ledger, None), suite, first))
            found.append(Work(job, partial(_keep_findings, ledger, dataset), 0.0))
    return found


def _models(ledger: Ledger, entry: AttackAt | None) -> Models:
    """Who takes part; a surrogate where an attack is made on one."""
    evaluation = ledger.evaluation
    transfers = entry is not None and entry.attack.name == "transfer"
    return Models(
        evaluation.model.weights_sha256,
        evaluation.original.weights_sha256 if evaluation.original else None,
        evaluation.surrogate.weights_sha256 if evaluation.surrogate and transfers else None,
    )


def _keep_findings(ledger: Ledger, dataset: str, text: str) -> None:
    ledger.keep_findings(dataset, [Finding.model_validate(each) for each in json.loads(text)])


def finish(work: Sequence[Work], run: Run, progress: Progress) -> None:
    """Do all of it, keeping every result as it comes."""
    by_name = {each.job.name: each for each in work}
    progress.begin(sum(each.share for each in work), sum(each.share > 0 for each in work))

    def done(job: Job, result: Any) -> None:
        each = by_name[job.name]
        progress.advance(job.name, each.share, each.keep(result))

    if work:
        run([each.job for each in work], done)


def record_of(ledger: Ledger, dataset: str, entry: AttackAt, *, checked: Sequence[str]) -> EvaluationRecord:
    """The record of a finished dataset under an attack; written if it is not there yet or would say something else.

    It carries the findings on its own dataset if that was checked, else those on all that were.
    """
    verdicts = ledger.verdicts(dataset, entry)
    rows = image_rows(verdicts)
    record = make_record(
        ledger.evaluation,
        entry,
        ledger.looked[dataset].facts[size(entry)],
        verdicts,
        findings=[
            finding
            for name in ((dataset,) if dataset in checked else checked)
            for finding in ledger.findings.get(name, ())
        ],
        made=[ledger.facts[unit.name] for unit in ledger.units(dataset, entry)],
        provenance=provenance(),
    )
    there = ledger.record(dataset, entry, rows)
    if there is not None and there.identity() == record.identity():
        return there
    ledger.keep_record(dataset, entry, record, rows)
    return record
