"""`agft evaluate`, `agft retrieve`, `agft reproduce`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from study.cli.edge import home, json_option, print_json
from study.errors import UserError

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
@click.option("--gpus-per-worker", type=click.FloatRange(0, 1), help="[default: 1 where the cluster has any]")
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
        print_json({**cost, "missing": missing})
        return
    click.echo(cost_text(cost))
    units = sum(row["units"] for row in cost["rows"])
    click.echo(f"work: {units:,} units of at most {UNIT_IMAGES} images for each model; sanity checks come on top")
    click.echo("--clean, --robust and --measure are options of agft plan --suite")
    for line in missing:
        click.echo(f"first: {line}")


@click.command()
@click.argument("model")
@click.option("--on", required=True, help="A set of pictures with captions: flickr30k, coco-karpathy, coco-val2017.")
@click.option("--attack", default="apgd-ce", show_default=True, help="An attack of docs/attacks.md, its settings the "
              "defaults.")  # fmt: skip
@click.option("--eps", default="", help="L-inf radii, e.g. 2/255,4/255.  [default: no attack]")
@click.option("--samples", type=click.IntRange(min=1), help="So many of the pictures.  [default: all]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of sample and attack.")
@json_option
def retrieve(model: str, on: str, attack: str, eps: str, samples: int | None, seed: int, as_json: bool) -> None:
    """Zero-shot retrieval: recall at 1, 5 and 10, from pictures to captions and back, clean and attacked."""
    from study.cli.here.retrieve import recall_table, retrieve_here
    from study.console import wide_console

    found = retrieve_here(model, on, attack=attack, eps=eps, samples=samples, seed=seed, home=home())
    if as_json:
        print_json(found)
    else:
        wide_console().print(recall_table(found))


@click.command()
@click.argument("table", metavar="TABLE")
@click.option("--weights", help="OpenAI's weights, where the hub cannot be reached.  [default: openai]")
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs to train on.  [default: this machine's]")
@click.option("--available", is_flag=True, help="Measure the sets that are here; a mean needs all of them.")
@click.option("--smoke", is_flag=True, help="As little as shows that it runs: random weights, drawn pictures.")
@json_option
def reproduce(
    table: str, weights: str | None, gpus: int | None, available: bool, smoke: bool, as_json: bool
) -> None:  # fmt: skip
    """Run a paper's protocol, training and measuring, and set the result beside its numbers; run again to go on.

    TABLE is agft-table: AGFT on ViT-B/32 with ImageNet, its tables 1, 2 and 4. What is not on this machine is named
    before anything is started.
    """
    if smoke and (weights or available):
        raise UserError("--smoke: neither with --weights nor with --available; it takes random weights and drawn sets")
    from study.cli.here.reproduce import reproduce_here

    sys.exit(
        reproduce_here(table, home(), weights=weights, gpus=gpus, available=available, small=smoke, as_json=as_json)
    )
