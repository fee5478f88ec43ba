"""What an evaluation is about: the models, what they are compared with, the suite; refused where they do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from study.errors import UserError
from study.evaluation_models import Gallery, Subject
from study.evaluation_plan import Device, Evaluation
from study.evaluation_suite import capped, check_ready, checked_sets, default_suite, load_suite
from trainers.suite import Suite

__all__ = ["Inputs", "Order", "read_inputs"]

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
