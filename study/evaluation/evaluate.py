"""Evaluations on a Ray cluster: what is missing is computed unit by unit, kept at once, and made into records."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infra.provenance import provenance
from study.console import Clock
from study.errors import UserError
from study.evaluation.ledger import Ledger, image_rows, make_record
from study.evaluation.models import Gallery, Subject
from study.evaluation.pool import Job
from study.evaluation.units import Device, Evaluation, Looked, Unit, cost, size
from study.evaluation.worker import SANITY_IMAGES, Models
from study.spec.suite import capped, check_ready, checked_sets, default_suite, load_suite
from trainers.data import safe_name
from trainers.evaluation.record import EvaluationRecord, Finding
from trainers.evaluation.sanity import passes
from trainers.schema.suite import AttackAt, Suite

# How far an evaluation is, on standard error: results alone go to standard output.

PAUSE_SECONDS = 5.0  # between two lines, but for the first and the last


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

    def advance(self, share: float, text: str) -> None:
        """One of them is finished; not every one is shown."""
        now = time.monotonic()
        self._finished += 1
        self._done += share
        if now - self._shown >= PAUSE_SECONDS or self._finished == self._number:
            self._shown = now
            left = (now - self._begun) / self._done * (self._share - self._done)
            ending = f", {_duration(left)} left" if self._finished < self._number else ""
            self(f"{self._finished}/{self._number}{ending}  {text}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


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


def missing_work(ledger: Ledger, *, checked: Sequence[str], batch_size: int | None) -> list[Work]:
    """Units that are not finished, and sanity checks on the datasets `checked`. Needs all looks."""
    evaluation, found = ledger.evaluation, []
    suite = evaluation.suite.model_dump(mode="json")
    for dataset in evaluation.suite.datasets:
        group = (evaluation.model.weights_sha256, dataset)
        num_classes = next(iter(ledger.looked[dataset].facts.values())).num_classes
        for entry in evaluation.suite.attacks:
            for unit in ledger.missing(dataset, entry):
                share = cost(unit, num_classes)
                arguments = (unit, _models(ledger, entry), suite, evaluation.digest, batch_size)
                job = Job(f"{evaluation.model.label}: {unit.name}", group, share, "measure", arguments)
                found.append(Work(job, partial(_keep_unit, ledger, unit, checked), share))
        first = next((entry for entry in evaluation.suite.attacks if max(entry.eps) > 0), None)
        if dataset in checked and dataset not in ledger.findings and first is not None:
            forward, backward = passes(
                num_classes=num_classes, norm=first.norm, original=evaluation.original is not None
            )
            share = SANITY_IMAGES * (forward + 2.0 * backward)
            name = f"{evaluation.model.label}: {safe_name(dataset)}/sanity"
            job = Job(name, group, FIRST, "check", (dataset, _models(ledger, None), first, evaluation.suite.seed))
            found.append(
                Work(job, partial(_keep_findings, ledger, dataset), SANITY_IMAGES * (forward + 2.0 * backward))
            )
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


# What an evaluation is about: the models, what they are compared with, the suite; refused where they do not fit.

NONE = "none"
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,59}")  # part of a folder's name


@dataclass(frozen=True)
class Order:
    """What the command line asks for; None where it leaves the choice to us. `suite`: if it names one."""

    models: tuple[str, ...]
    labels: tuple[str, ...]
    suite: Suite | None
    original: str | None
    surrogate: str | None
    out: str | None
    workers: int | None
    cpus: float | None
    gpus: float | None
    batch_size: int | None
    samples: int | None
    sanity: str
    mlflow: bool


@dataclass(frozen=True)
class Inputs:
    """Loaded models, each with the original it is compared with, and the sets that sanity checks are made on."""

    subjects: tuple[Subject, ...]
    originals: tuple[Subject | None, ...]
    surrogate: Subject | None
    suite: Suite
    checked: tuple[str, ...]

    def models(self) -> list[Subject]:
        """All that take part."""
        return [each for each in (*self.subjects, *self.originals, self.surrogate) if each is not None]

    def evaluations(self, device: Device) -> list[Evaluation]:
        """One for every model."""
        surrogate = None if self.surrogate is None else self.surrogate.facts
        return [
            Evaluation(subject.facts, None if original is None else original.facts, surrogate, self.suite, device)
            for subject, original in zip(self.subjects, self.originals, strict=True)
        ]


def read_inputs(order: Order, home: Path, say: Callable[[str], None]) -> Inputs:
    """Load what the order names. Raises `UserError`."""
    gallery = Gallery(home, say)
    subjects = _subjects(order, gallery)
    suite = capped(order.suite or _default_suite(subjects), order.samples)
    checked = checked_sets(order.sanity, suite)
    surrogate = _surrogate(order, suite, gallery)
    originals = tuple(_original(order, each, gallery, say) for each in subjects)
    return Inputs(subjects, originals, surrogate, suite, checked)


def _subjects(order: Order, gallery: Gallery) -> tuple[Subject, ...]:
    if order.labels and len(order.labels) != len(order.models):
        raise UserError(f"--label: {len(order.labels)} for {len(order.models)} models; give one for each, or none")
    if wrong := [label for label in order.labels if not LABEL.fullmatch(label)]:
        raise UserError(f"--label: {wrong[0]!r}: a label is 1 to 60 letters, digits and . _ -, no dash or dot first")
    labels = order.labels or (None,) * len(order.models)
    subjects = tuple(gallery.subject(named, label) for named, label in zip(order.models, labels, strict=True))
    names = [subject.facts.label for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--label: two models are called {', '.join(twice)}; give every one a --label")
    return subjects


def _default_suite(subjects: Sequence[Subject]) -> Suite:
    suite = load_suite(default_suite([each.facts.arch for each in subjects]))
    check_ready(suite, suite.name)
    return suite


def _surrogate(order: Order, suite: Suite, gallery: Gallery) -> Subject | None:
    transfers = [entry.label for entry in suite.attacks if entry.attack.name == "transfer"]
    if transfers and order.surrogate is None:
        raise UserError(f"--surrogate: {', '.join(transfers)} needs a model to make its images on")
    if order.surrogate is None:
        return None
    if not transfers:
        raise UserError(f"--surrogate: no attack of suite {suite.name!r} is made on another model")
    return gallery.subject(order.surrogate, path="--surrogate")


def _original(order: Order, subject: Subject, gallery: Gallery, say: Callable[[str], None]) -> Subject | None:
    """The model that top-5 overlap and sanity checks compare with."""
    named = order.original or subject.origin
    if named is None:
        say(f"{subject.facts.label}: its file does not say what it was tuned from, so no top-5 overlap; see --original")
    if named is None or named == NONE:
        return None
    try:
        return gallery.subject(named, path="--original")
    except UserError as error:
        if order.original:
            raise
        raise UserError(
            f"{error}\n{subject.facts.label} says that it was tuned from it; name another place of it with --original, "
            "or --original none to go without top-5 overlap"
        ) from error
