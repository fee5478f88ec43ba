"""What is left to do of evaluations: the jobs, what keeps their results at once, how far they are, and the records."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from infra.provenance import provenance
from study.console import Clock, duration
from study.evaluation.ledger import Ledger, image_rows, make_record
from study.evaluation.pool import Job
from study.evaluation.units import Looked, Unit, cost, size
from study.evaluation.worker import SANITY_IMAGES, Models
from trainers.data import safe_name
from trainers.evaluation.record import EvaluationRecord, Finding
from trainers.evaluation.sanity import passes
from trainers.schema.suite import AttackAt

# How far an evaluation is, on standard error: results alone go to standard output.

PAUSE_SECONDS = 5.0  # between two lines, but for the first and the last
START_SECONDS = 60.0  # what is finished first has waited for workers to start: of less than this no rate is made


class Progress(Clock):
    """Lines that begin with the time since it was made; `advance` adds how far we are and the time left."""

    def __init__(self) -> None:
        super().__init__(aside=True)
        self.begin(0, 0.0)

    def begin(self, number: int, share: float) -> None:
        """So many things are to do from now on, of so much cost together."""
        self._begun, self._shown = time.monotonic(), 0.0
        self._number, self._finished = number, 0
        self._share, self._done = share, 0.0
        self._since = self._begun, 0.0  # when the rate begins, and what was done by then

    def advance(self, share: float, text: str) -> None:
        """One of them is finished; not every one is shown."""
        now = time.monotonic()
        self._finished += 1
        self._done += share
        if now - self._shown >= PAUSE_SECONDS or self._finished == self._number:
            self._shown = now
            self.step(self._left(now) if self._finished < self._number else "", text)
        if self._finished == 1 and now - self._begun < START_SECONDS:
            self._since = now, self._done

    def _left(self, now: float) -> str:
        began, before = self._since
        if self._finished == 1 and now - began < START_SECONDS:
            return ""
        return f", about {duration((now - began) / (self._done - before) * (self._share - self._done))} left"

    def step(self, left: str, text: str) -> None:
        """What is told of one step."""
        self(f"{self._finished}/{self._number}{left}  {text}")


class Said(Progress):
    """Progress told by whoever tells everything else: `what`, how much of it is done, and the time left.

    Of what is done within a few seconds nothing is told.
    """

    def __init__(self, say: Callable[[str], None], what: str, of: str = "units") -> None:
        super().__init__()
        self.say, self.what, self.of = say, what, of

    def __call__(self, text: str) -> None:
        self.say(text)

    def step(self, left: str, text: str) -> None:
        if self._finished < self._number and self._shown - self._begun > PAUSE_SECONDS:
            self.say(f"{self.what}: {self._finished} of {self._number} {self.of}{left}")


FIRST = 1e18  # cost of what is handed out before everything else: a failed check is worth knowing early
Run = Callable[[Sequence[Job], Callable[[Job, Any], None]], None]


@dataclass(frozen=True)
class Work:
    """A job; what keeps its result and says in a few words what it was; and its share of the time, in passes."""

    job: Job
    keep: Callable[[Any], str]
    share: float


def missing_looks(ledgers: Sequence[Ledger]) -> list[Work]:
    """Datasets that somebody has to look at first; one look serves all models."""
    found = []
    names = dict.fromkeys(name for each in ledgers for name in each.evaluation.suite.datasets)
    for name in names:
        needing = [each for each in ledgers if name not in each.looked]
        if needing:
            suite = needing[0].evaluation.suite.model_dump(mode="json")
            job = Job(f"looking at {name}", ("", name), 1.0, "look", (name, suite))
            found.append(Work(job, partial(_keep_look, needing, name), 1.0))
    return found


def _keep_look(ledgers: Sequence[Ledger], name: str, text: str) -> str:
    looked = Looked.model_validate_json(text)
    for ledger in ledgers:
        ledger.keep_looked(name, looked)
    facts = next(iter(looked.facts.values()))
    return f"{facts.images:,} images, {facts.num_classes:,} classes"


def missing_work(
    ledger: Ledger, *, checked: Sequence[str] = (), batch_size: int | None = None, method: str = "measure"
) -> list[Work]:
    """Units that are not finished, and sanity checks on the datasets `checked`. Needs all looks.

    `method`: `logits` keeps them too, in a suite that has no radius but zero.
    """
    evaluation, found = ledger.evaluation, []
    suite = evaluation.suite.model_dump(mode="json")
    for dataset in evaluation.suite.datasets:
        group = (evaluation.model.weights_sha256, dataset)
        num_classes = next(iter(ledger.looked[dataset].facts.values())).num_classes
        for entry in evaluation.suite.attacks:
            for unit in ledger.missing(dataset, entry):
                share = cost(unit, num_classes)
                arguments = (unit, _models(ledger, entry), suite, evaluation.digest, batch_size)
                job = Job(f"{evaluation.model.label}: {unit.name}", group, share, method, arguments)
                found.append(Work(job, partial(_keep_unit, ledger, unit, checked), share))
        first = next((entry for entry in evaluation.suite.attacks if max(entry.eps) > 0), None)
        if dataset in checked and dataset not in ledger.findings and first is not None:
            forward, backward = passes(
                num_classes=num_classes, norm=first.norm, original=evaluation.original is not None
            )
            images = min(SANITY_IMAGES, first.samples or SANITY_IMAGES)  # a quick look is one here too
            checked_on = (dataset, _models(ledger, None), first, evaluation.suite.seed, images)
            job = Job(f"{evaluation.model.label}: {safe_name(dataset)}/sanity", group, FIRST, "check", checked_on)
            share = images * (forward + 2.0 * backward)
            found.append(Work(job, partial(_keep_findings, ledger, dataset), share))
    return found


def _keep_unit(ledger: Ledger, unit: Unit, checked: Sequence[str], data: bytes) -> str:
    """Keep it; with the last one of a dataset under an attack, the record is there to be read."""
    verdicts = ledger.keep_unit(unit, data)
    if not ledger.missing(unit.dataset, unit.entry):
        record_of(ledger, unit.dataset, unit.entry, checked=checked)
    robust = " / ".join(map(str, (~verdicts.fooled).sum(1).tolist()))
    return f"{len(verdicts.index)} images, {int(verdicts.right.sum())} right, {robust} robust"


def _keep_findings(ledger: Ledger, dataset: str, text: str) -> str:
    findings = [Finding.model_validate(each) for each in json.loads(text)]
    ledger.keep_findings(dataset, findings)
    failed = [finding.name for finding in findings if finding.outcome == "failed"]
    return f"{len(findings)} checks, failed: {', '.join(failed) or 'none'}"


def _models(ledger: Ledger, entry: AttackAt | None) -> Models:
    """Who takes part; a surrogate where an attack is made on one."""
    evaluation = ledger.evaluation
    transfers = entry is not None and entry.attack.name == "transfer"
    return Models(
        evaluation.model.weights_sha256,
        evaluation.original.weights_sha256 if evaluation.original else None,
        evaluation.surrogate.weights_sha256 if evaluation.surrogate and transfers else None,
    )


def finish(work: Sequence[Work], run: Run, progress: Progress) -> None:
    """Do all of it, keeping every result as it comes."""
    by_name = {each.job.name: each for each in work}
    progress.begin(len(work), sum(each.share for each in work))

    def done(job: Job, result: Any) -> None:
        each = by_name[job.name]
        progress.advance(each.share, f"{job.name}: {each.keep(result)}")

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
