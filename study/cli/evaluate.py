"""`agft evaluate`: light to import, as the whole command line is."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from infra.services import Services
    from study.evaluation.ledger import Ledger
    from study.evaluation.models import Inputs, Order
    from study.evaluation.units import Device
    from study.evaluation.work import Progress
    from trainers.evaluation.record import EvaluationRecord
    from trainers.schema.suite import Suite

    Results = list[tuple[Ledger, list[EvaluationRecord]]]


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the command. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.argument("models", nargs=-1, required=True, metavar="MODEL...")
    @click.option("--suite", help="A suite's name, or a FILE.yaml.  [default: zero-shot-15; tiny for the tiny CLIP]")
    @click.option("--label", "labels", multiple=True, help="What a model is called; once for each.")
    @click.option("--original", help="The CLIP before fine-tuning, which top-5 overlap compares with, or none.  "
                  "[default: what MODEL says it was tuned from]")  # fmt: skip
    @click.option("--surrogate", help="The model that transfer attacks are made on.")
    @click.option("--out", help="Folder or s3:// address below which every evaluation gets its own.  "
                  "[default: evaluations in the AGFT home]")  # fmt: skip
    @click.option("--samples", type=click.IntRange(min=1), help="At most so many images of each set: a quick look.")
    @click.option("--sanity", default="auto", show_default=True,
                  help="Sets that the attacks themselves are checked on: auto, all, none, or one.")  # fmt: skip
    @click.option("--workers", type=click.IntRange(min=1), help="Ray workers.  [default: as many as fit]")
    @click.option("--cpus-per-worker", type=click.FloatRange(min=0, min_open=True), help="Also torch's threads.")
    @click.option("--gpus-per-worker", type=click.FloatRange(min=0), help="[default: 1 where the cluster has any]")
    @click.option("--batch-size", type=click.IntRange(min=1), help="Images under attack together; decides memory, no "
                  "number.  [default: as many as fit]")  # fmt: skip
    @click.option("--no-mlflow", is_flag=True, help="Leave MLflow alone.")
    @click.option("--plan", "plan_only", is_flag=True, help="Show what would be computed; start nothing.")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def evaluate(
        models: tuple[str, ...], suite: str | None, labels: tuple[str, ...], original: str | None,
        surrogate: str | None, out: str | None, samples: int | None, sanity: str, workers: int | None,
        cpus_per_worker: float | None, gpus_per_worker: float | None, batch_size: int | None, no_mlflow: bool,
        plan_only: bool, as_json: bool,
    ) -> None:  # fmt: skip
        """Measure models on a suite of datasets under attack, on all workers of a Ray cluster; run again to go on.

        MODEL is a weights file or export folder (also at s3://), ARCH:PRETRAINED as in a study file, tiny-clip, or
        models:/NAME, the champion.
        """
        from study.evaluation.names import check_names
        from study.spec.suite import capped, chosen_suite, default_suite, load_suite

        if plan_only:
            show_plan(capped(load_suite(suite or default_suite(models)), samples), as_json=as_json)
            return
        check_names(models, original=original, surrogate=surrogate)
        found = chosen_suite(suite, models)
        from study.evaluation.models import Order

        order = Order(
            models=models, labels=labels, suite=found, original=original, surrogate=surrogate, out=out,
            workers=workers, cpus=cpus_per_worker, gpus=gpus_per_worker, batch_size=batch_size, samples=samples,
            sanity=sanity, mlflow=not no_mlflow,
        )  # fmt: skip
        sys.exit(evaluate_here(order, home(), as_json=as_json))


def show_plan(suite: Suite, *, as_json: bool) -> None:
    """What each model would cost, and what must be prepared first."""
    from study.evaluation.units import UNIT_IMAGES
    from study.plan.cost import Assumed, cost_of, cost_text
    from study.spec.suite import unready

    cost, missing = cost_of(suite, Assumed(), None), unready(suite)
    if as_json:
        click.echo(json.dumps({**cost, "missing": missing}, indent=2))
        return
    click.echo(cost_text(cost))
    units = sum(row["units"] for row in cost["rows"])
    click.echo(f"work: {units:,} units of at most {UNIT_IMAGES} images for each model; sanity checks come on top")
    click.echo("--clean, --robust and --measure are options of agft plan --suite")
    for line in missing:
        click.echo(f"first: {line}")


# One `agft evaluate` on this machine: models, places, Ray, records, MLflow, and what a person sees of it.


def evaluate_here(order: Order, home: Path, *, as_json: bool) -> int:
    """Evaluate (or go on with it) and show the result; the exit code."""
    from study.evaluation.models import read_inputs
    from study.evaluation.tracking import ship
    from study.evaluation.work import Progress

    progress = Progress()
    try:
        progress(f"reading {', '.join(order.models)} ...")
        inputs = read_inputs(order, home, progress)
        services = _services(order, home, progress)
        with ExitStack() as stack:
            results = _results(order, inputs, home, stack, progress)
        _show(results, as_json=as_json)
        if services is not None:
            ship(results, services.mlflow_uri, progress)
    except KeyboardInterrupt:
        progress("stopped; every finished unit is kept. Go on with the same command:")
        progress(f"  {shlex.join(['agft', *sys.argv[1:]])}")
        return 1
    return 0


def _services(order: Order, home: Path, progress: Progress) -> Services | None:
    """What is needed of S3 and MLflow; workers inherit addresses and keys through the environment."""
    from study.artifacts.datasets import reach_storage
    from study.artifacts.sources import storage_here
    from study.session import services_here

    services = services_here(home, progress) if order.mlflow else None
    if order.out is not None and order.out.startswith("s3://"):
        storage_here(home, progress)
    reach_storage(None, home)
    return services


def _results(order: Order, inputs: Inputs, home: Path, stack: ExitStack, progress: Progress) -> Results:
    """All records, computed where they are not there yet; each evaluation alone in its place until it is done."""
    from study.evaluation.place import alone_in, place_at
    from study.evaluation.work import record_of

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
    from infra.cluster.cluster import capacity

    if order.gpus is not None:
        return "cuda" if order.gpus > 0 else "cpu"
    if os.environ.get("RAY_ADDRESS"):
        stack.enter_context(_connected(progress))
        return "cuda" if capacity().get("GPU", 0.0) >= 1 else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _connected(progress: Progress) -> Iterator[None]:
    """Connected to Ray; let go again by whoever was first."""
    import ray

    from study.session import cluster_here

    if ray.is_initialized():
        yield
        return
    with cluster_here(progress):
        yield


def _compute(ledgers: Sequence[Ledger], order: Order, inputs: Inputs, stack: ExitStack, progress: Progress) -> None:
    """Everything that is not finished."""
    from study.evaluation.executor import Executor
    from study.evaluation.work import missing_looks, missing_work

    checked, batch_size = inputs.checked, order.batch_size
    if not missing_looks(ledgers) and not any(
        missing_work(ledger, checked=checked, batch_size=batch_size) for ledger in ledgers
    ):
        progress("everything is finished already")
        return
    stack.enter_context(_connected(progress))

    def tick() -> None:
        for ledger in ledgers:
            ledger.check()

    with Executor(progress, workers=order.workers, cpus=order.cpus, gpus=order.gpus, tick=tick) as executor:
        executor.packed = {each.facts.weights_sha256: each.packed for each in inputs.models()}
        executor.complete(ledgers, progress, checked=checked, batch_size=batch_size)


def _summary(ledger: Ledger, records: Sequence[EvaluationRecord]) -> dict[str, Any]:
    from study.evaluation.table import summary

    return summary(ledger.evaluation, records, ledger.place.at(""))


def _show(results: Results, *, as_json: bool) -> None:
    from study.console import wide_console
    from study.evaluation.table import failed_checks, summary_table

    if as_json:
        click.echo(json.dumps([_summary(ledger, records) for ledger, records in results], indent=2))
        return
    console = wide_console()
    for ledger, records in results:
        console.print(summary_table(ledger.evaluation, records))
        for line in failed_checks(records):
            console.print(line, markup=False)
        click.echo(f"records: {ledger.place.at('records')}")
