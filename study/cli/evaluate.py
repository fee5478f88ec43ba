"""`agft evaluate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from study.cli.edge import home, json_option, print_json

if TYPE_CHECKING:
    from trainers.schema.suite import Suite


@click.command()
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
@json_option
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
    from study.cli.here.evaluate import evaluate_here
    from study.evaluation.evaluate import Order

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
        print_json({**cost, "missing": missing})
        return
    click.echo(cost_text(cost))
    units = sum(row["units"] for row in cost["rows"])
    click.echo(f"work: {units:,} units of at most {UNIT_IMAGES} images for each model; sanity checks come on top")
    click.echo("--clean, --robust and --measure are options of agft plan --suite")
    for line in missing:
        click.echo(f"first: {line}")
