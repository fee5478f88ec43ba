"""One `agft evaluate` on this machine: models, places, Ray, records, MLflow, and what a person sees of it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from infra.cluster.cluster import capacity
from infra.services import Services
from study.artifacts.datasets import reach_storage
from study.cli.edge import print_json
from study.console import wide_console
from study.evaluation.executor import Executor
from study.evaluation.ledger import Ledger
from study.evaluation.models import Inputs, Order, read_inputs
from study.evaluation.place import alone_in, place_at
from study.evaluation.table import remarks, summary, summary_table
from study.evaluation.tracking import ship
from study.evaluation.units import Device
from study.evaluation.work import Progress, missing_looks, missing_work, record_of
from study.session import cluster_here, services_here, storage_here
from trainers.device import task_device
from trainers.evaluation.record import EvaluationRecord

Results = list[tuple[Ledger, list[EvaluationRecord]]]


def evaluate_here(order: Order, home: Path, *, as_json: bool) -> int:
    """Evaluate (or go on with it) and show the result; the exit code."""
    progress = Progress()
    try:
        measured(order, home, progress, lambda results: _show(results, as_json=as_json))
    except KeyboardInterrupt:
        progress("stopped; every finished unit is kept. Go on with the same command:")
        progress(f"  {shlex.join(['agft', *sys.argv[1:]])}")
        return 1
    return 0


def measured(order: Order, home: Path, progress: Progress, show: Callable[[Results], None] | None = None) -> Results:
    """Every record of an evaluation, told to MLflow; what is finished already is not computed again."""
    progress(f"reading {', '.join(order.models)} ...")
    inputs = read_inputs(order, home, progress)
    services = _services(order, home, progress)
    with ExitStack() as stack:
        results = _results(order, inputs, home, stack, progress)
    if show is not None:
        show(results)
    if services is not None:
        ship(results, services.mlflow_uri, progress)
    return results


def _services(order: Order, home: Path, progress: Progress) -> Services | None:
    """What is needed of S3 and MLflow; workers inherit addresses and keys through the environment."""
    services = services_here(home, progress) if order.mlflow else None
    if order.out is not None and order.out.startswith("s3://"):
        storage_here(home, progress)
    reach_storage(None, home)
    return services


def _results(order: Order, inputs: Inputs, home: Path, stack: ExitStack, progress: Progress) -> Results:
    """All records, computed where they are not there yet; each evaluation alone in its place until it is done."""
    ledgers = []
    for evaluation in inputs.evaluations(_device(order, stack, progress)):
        place = place_at(order.out or str(home / "evaluations"), evaluation.name)
        ledgers.append(Ledger(evaluation, place, progress, stack.enter_context(alone_in(place))))
        ledgers[-1].open()
    _compute(ledgers, order, inputs, stack, progress)
    results = [
        (ledger, [record_of(ledger, dataset, entry, checked=inputs.checked)
                  for dataset in inputs.suite.datasets for entry in inputs.suite.attacks])
        for ledger in ledgers
    ]  # fmt: skip
    for ledger, records in results:
        ledger.keep_summary(_summary(ledger, records))
    return results


def _device(order: Order, stack: ExitStack, progress: Progress) -> Device:
    """Kind of device of all workers."""
    if order.gpus is not None:
        return "cuda" if order.gpus > 0 else "cpu"
    if os.environ.get("RAY_ADDRESS"):
        stack.enter_context(cluster_here(progress))
        return "cuda" if capacity().get("GPU", 0.0) >= 1 else "cpu"
    return "cuda" if task_device().type == "cuda" else "cpu"


def _compute(ledgers: Sequence[Ledger], order: Order, inputs: Inputs, stack: ExitStack, progress: Progress) -> None:
    """Everything that is not finished."""
    how: dict[str, Any] = {"checked": inputs.checked, "batch_size": order.batch_size}
    if not missing_looks(ledgers) and not any(missing_work(ledger, **how) for ledger in ledgers):
        progress("everything is finished already")
        return
    stack.enter_context(cluster_here(progress))

    def tick() -> None:
        for ledger in ledgers:
            ledger.check()

    with Executor(progress, workers=order.workers, cpus=order.cpus, gpus=order.gpus, tick=tick) as executor:
        executor.packed = {each.facts.weights_sha256: each.packed for each in inputs.models()}
        executor.complete(ledgers, progress, **how)


def _summary(ledger: Ledger, records: Sequence[EvaluationRecord]) -> dict[str, Any]:
    return summary(ledger.evaluation, records, ledger.place.at(""))


def _show(results: Results, *, as_json: bool) -> None:
    if as_json:
        print_json([_summary(ledger, records) for ledger, records in results])
        return
    console = wide_console()
    for ledger, records in results:
        console.print(summary_table(ledger.evaluation, records))
        for line in remarks(records):
            console.print(line, markup=False)
        click.echo(f"records: {ledger.place.at('records')}")
