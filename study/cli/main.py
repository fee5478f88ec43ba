"""The `agft` command: thin. Imports only what a command needs, so that a wrong file is answered at once."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from study.cli import cluster as submit_cli
from study.cli import compare as compare_cli
from study.cli import data as data_cli
from study.cli import evaluate as evaluate_cli
from study.cli import models as models_cli
from study.cli import operations as backup_cli
from study.cli import operations as doctor_cli
from study.cli import operations as metrics_cli
from study.cli import plan as plan_cli
from study.cli import promote as promote_cli
from study.cli import stack as stack_cli
from study.cli import study as lifecycle_cli
from study.cli import weights as weights_cli
from study.errors import SERVICE_ERRORS, USER_ERRORS
from study.interrupts import hear_interrupts
from trainers.objectives.presets import PRESETS

if TYPE_CHECKING:
    from study.store.store import StudyStore


FILE = click.Path(dir_okay=False, path_type=Path)


def answering(command: Callable[..., None]) -> Callable[..., None]:
    """Turn our errors into one message and an exit code: 2 for wrong input, 1 for what failed."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except USER_ERRORS as error:
            click.echo(str(error), err=True)
            sys.exit(2)
        except SERVICE_ERRORS as error:
            click.echo(f"failed: {error}", err=True)
            sys.exit(1)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agft-study")
def main() -> None:
    """Hyperparameter studies for adversarially robust CLIP: search, watch, promote."""
    hear_interrupts()


def home() -> Path:
    from infra.services import default_home

    return default_home(os.environ)


def store_of(name: str) -> StudyStore:
    from study.store.database import database_url
    from study.store.store import StudyStore

    return StudyStore(database_url(home()), name)


class PresetName(click.Choice[str]):
    """Presets come with methods, which installed packages may add: asked for when a command needs them."""

    choices = property(lambda self: tuple(PRESETS), lambda self, given: None)


@main.command()
@click.argument("file", type=FILE)
@click.option("--preset", type=PresetName([]), default="agft-paper", show_default=True, help="Recipe.")
@click.option("--arch", default="ViT-B-32-quickgelu", show_default=True, help="open_clip architecture, or tiny-clip.")
@click.option("--pretrained", default="openai", show_default=True, help="Tag, path or address of the weights.")
@answering
def init(file: Path, preset: str, arch: str, pretrained: str) -> None:
    """Write a new study file with a published recipe spelled out."""
    from study.spec.template import write_study_file

    write_study_file(file, preset=preset, model={"arch": arch, "pretrained": pretrained})
    click.echo(f"{file}: written from {preset}; change it, then `agft plan {file}`")


@main.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the resolved study as JSON.")
@answering
def validate(file: Path, as_json: bool) -> None:
    """Check a study file; every mistake is reported at once, nothing is started."""
    from study.plan.study import remarks
    from study.spec.files import load_study

    spec = load_study(file)
    if as_json:
        click.echo(json.dumps(spec.model_dump(mode="json"), indent=2))
        return
    methods, goal = " or ".join(spec.blocks()), " and ".join(spec.goal.at({}).names)
    click.echo(f"{file}: valid. Study {spec.name!r}: {spec.budget.trials} trials of {methods}, "
               f"{len(spec.dimensions())} searched parameters, goal: max {goal}")  # fmt: skip
    for remark in remarks(spec):
        click.echo(f"  {remark}")


@main.command()
@click.argument("file", type=FILE)
@click.option("--name", help="Run it under another name.")
@click.option("--numbered", is_flag=True, help="Run it under a new name: the file's, with the next free number.")
@click.option("--promote", "then_promote", is_flag=True, help="Promote the best trial when the study has finished.")
@answering
def run(file: Path, name: str | None, numbered: bool, then_promote: bool) -> None:
    """Run a study here, or go on with it; Ctrl-C pauses it."""
    from study.artifacts.datasets import check_ready
    from study.spec.files import load_study

    spec = load_study(file)
    if numbered:
        name = next_name(name or spec.name)
    if name is not None:
        spec = spec.renamed(name)
    if spec.prior:
        from study.search.prior import check_prior
        from study.store.database import database_url

        check_prior(database_url(home()), spec)
    check_ready(spec)
    from study.cli.study import run_here

    sys.exit(run_here(spec, home(), then_promote=then_promote))


def next_name(base: str) -> str:
    """`base-001`, or one more than the highest number in use."""
    from study.store.database import database_url
    from study.store.store import study_names

    pattern = re.compile(rf"^{re.escape(base)}-(\d+)$")
    used = [int(match[1]) for known in study_names(database_url(home())) if (match := pattern.match(known))]
    return f"{base}-{max(used, default=0) + 1:03d}"


@main.command()
@click.argument("target", metavar="STUDY|EVALUATION")
@click.option("--against", metavar="paper|EVALUATION", help="Of an evaluation's folder or s3:// prefix: set it "
              "beside published numbers, or beside another evaluation of the same images.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Of a study: folder, by default under the AGFT home. With "
              "--against: Markdown file, by default the screen.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For machines, on the screen.")
@answering
def report(target: str, against: str | None, out: Path | None, as_json: bool) -> None:
    """Write a study's table and figures; or set an evaluation beside published numbers or another model."""
    if against is None:
        from study.report.page import report_json, write_report

        store = store_of(target)
        if as_json:
            click.echo(json.dumps(report_json(store.load(), store.trials()), indent=2))
            return
        click.echo(write_report(store.load(), store.trials(), out or home() / "reports" / target))
        return
    from study.evaluation.against import report_against

    text = report_against(target, against, home(), as_json=as_json)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
        click.echo(out)
    elif as_json or not sys.stdout.isatty():
        click.echo(text)
    else:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))


plan_cli.attach(main, answering, home)
compare_cli.attach(main, answering, home)
weights_cli.attach(main, answering, home)
data_cli.attach(main, answering, home)
evaluate_cli.attach(main, answering, home)
lifecycle_cli.attach(main, answering, home)
submit_cli.attach(main, answering, home)
models_cli.attach(main, answering, home)
promote_cli.attach(main, answering, home)
stack_cli.attach(main, answering, home)
doctor_cli.attach_doctor(main, answering, home)
backup_cli.attach(main, answering, home)
metrics_cli.attach_metrics(main, answering, home)
