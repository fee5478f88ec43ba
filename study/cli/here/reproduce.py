"""`agft reproduce`: a paper's protocol from its training to its table, and the published numbers beside ours."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import click

from infra.checks.machine import gpus_here
from study.artifacts.datasets import named_sets
from study.artifacts.ready import trials_here, weights_finding
from study.begin.first import random_weights
from study.begin.recipes import for_devices, recipe, smoke, with_block
from study.cli.here.evaluate import measured
from study.cli.here.study import run_here
from study.console import say
from study.errors import StudyFailed, UserError
from study.evaluation.against import against_paper, lines_of_paper
from study.evaluation.models import NONE, Order
from study.evaluation.work import Progress
from study.results.ranking import best_trial
from study.spec.config import StudyConfig
from study.spec.files import parse_study
from study.spec.places import weights_at
from study.store.database import database_url
from study.store.store import StudyStore
from trainers.data import not_ready
from trainers.errors import lookup
from trainers.schema.suite import SUITES, Suite


@dataclass(frozen=True)
class Protocol:
    """What is run: a shipped recipe of one trial, and the suite that the paper's tables were measured on."""

    recipe: str
    suite: str


PROTOCOLS = {"agft-table": Protocol("agft-table", "zero-shot-15-paper")}
SMOKE_SETS = ("tiny-colors", "tiny-textures")
SMOKE_SAMPLES = 24


def reproduce_here(
    name: str, home: Path, *, weights: str | None, gpus: int | None, available: bool, small: bool, as_json: bool
) -> int:
    """Train, measure and compare, or go on with it; the exit code. `UserError` names everything that is not here.

    `available`: of the suite's sets, those that are here; no mean is then compared. `small`: the smoke form.
    """
    protocol = lookup(PROTOCOLS, name, path="TABLE")
    suite = SUITES[protocol.suite][0]
    text = with_block(recipe(protocol.recipe), "name", f"{name}-smoke" if small else name)
    if small:
        arch = parse_study(text, source=name).model.arch
        text = smoke(text, str(random_weights(arch, home)))
        suite = suite.model_copy(update={"name": f"{suite.name}-smoke", "datasets": SMOKE_SETS})
    elif weights is not None:
        model = parse_study(text, source=name).model.model_dump()
        text = with_block(text, "model", {**model, "pretrained": weights_at(weights, Path())})
    if gpus or (gpus is None and gpus_here() and not small):
        text = for_devices(text, gpus or gpus_here())
    spec = parse_study(text, source=name)
    if lines := lacking(spec, suite if not available else suite.model_copy(update={"datasets": ()})):
        raise UserError("\n".join([f"{name}: this machine lacks {len(lines)} of what the protocol needs:", *lines]))
    if available and (absent := [each for each in suite.datasets if not_ready({each: each})]):
        here = tuple(each for each in suite.datasets if each not in absent)
        if not here:
            raise UserError(f"{name}: none of the sets of {suite.name} is here: {', '.join(suite.datasets)}")
        say(f"measured on {len(here)} of {len(suite.datasets)} sets; not here: {', '.join(sorted(absent))}")
        suite = suite.model_copy(update={"name": f"{suite.name}-available", "datasets": here})
    with contextlib.redirect_stdout(sys.stderr):  # the result alone goes to standard output
        if code := run_here(spec, home, then_promote=False):
            return code
        store = StudyStore(database_url(home), spec.name)
        study = store.load()
        best = best_trial(store.trials(), study.goal) if study.goal else None
        if best is None or best.best is None:
            raise StudyFailed(f"the trial of study {spec.name!r} has no weights; agft status {spec.name} says why")
        order = Order(models=(best.best.uri,), labels=(name,), suite=suite)
        if small:  # random weights: nothing there to be believed, and an hour of a CPU to check it
            order = replace(order, samples=SMOKE_SAMPLES, sanity=NONE)
        records = [record for _, each in measured(order, home, Progress()) for record in each]
    found = against_paper(records)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines_of_paper(found)))
    return 0


def lacking(spec: StudyConfig, suite: Suite) -> list[str]:
    """One line each: datasets of the training and of the suite, weights, and devices, that are not here. Of a cluster's
    nodes nothing is known; they refuse for themselves."""
    if os.environ.get("RAY_ADDRESS"):
        return []
    sets: dict[str, str] = {}
    for path, dataset in [*named_sets(spec).items(), *((f"{suite.name}: {each}", each) for each in suite.datasets)]:
        sets.setdefault(dataset, path)
    lines = not_ready({path: dataset for dataset, path in sets.items()})
    found = weights_finding(spec.model)
    if found.state == "failed":
        lines.append(f"{found.detail}{f'; {found.remedy}' if found.remedy else ''}")
    if lack := trials_here(spec)[1]:
        lines.append(lack)
    return [f"  {line}" for line in lines]
