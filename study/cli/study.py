"""`agft run`, `resume`, `pause`, `stop`, `extend`, `rerun`, `drop`, `delete`, `archive`, `restore`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from study.cli.edge import (
    FILE,
    POSITIVE,
    database,
    home,
    json_option,
    keep_what_is_there,
    replace_option,
    store_of,
    tell,
    told,
)

if TYPE_CHECKING:
    from study.console import Say
    from study.store.store import StudyStore


@click.command()
@click.argument("file", type=FILE)
@click.option("--name", help="Run it under another name.")
@click.option("--numbered", is_flag=True, help="Run it under a new name: the file's, with the next free number.")
@click.option("--promote", "then_promote", is_flag=True, help="Promote the best trial when the study has finished.")
@json_option
def run(file: Path, name: str | None, numbered: bool, then_promote: bool, as_json: bool) -> None:
    """Run a study here, or go on with it; Ctrl-C pauses it."""
    from study.artifacts.ready import check_ready
    from study.spec.files import load_study

    spec = load_study(file)
    if numbered:
        name = next_name(name or spec.name)
    if name is not None:
        spec = spec.renamed(name)
    if spec.prior:
        from study.search.prior import check_prior

        check_prior(database(), spec)
    check_ready(spec)
    from study.cli.here.study import run_here

    sys.exit(run_here(spec, home(), then_promote=then_promote, as_json=as_json))


def next_name(base: str) -> str:
    """`base-001`, or one more than the highest number in use."""
    from study.store.store import study_names

    pattern = re.compile(rf"^{re.escape(base)}-(\d+)$")
    used = [int(match[1]) for known in study_names(database()) if (match := pattern.match(known))]
    return f"{base}-{max(used, default=0) + 1:03d}"


@click.command()
@click.argument("study")
@click.option("--promote", "then_promote", is_flag=True, help="Promote the best trial when the study has ended.")
@json_option
def resume(study: str, then_promote: bool, as_json: bool) -> None:
    """Go on with a study from where it is, on whatever machine this is; Ctrl-C pauses it."""
    store = store_of(study)
    from study.artifacts.ready import check_ready

    check_ready(store.load().spec)
    from study.cli.here.study import resume_here

    sys.exit(resume_here(store, home(), then_promote=then_promote, as_json=as_json))


@click.command()
@click.argument("study")
@json_option
def pause(study: str, as_json: bool) -> None:
    """Ask a running study to pause; `agft resume` goes on with it."""
    store = store_of(study)
    from study.control.lifecycle import pause_study

    _answer(store, pause_study(store), as_json=as_json)


@click.command()
@click.argument("study")
@json_option
def stop(study: str, as_json: bool) -> None:
    """End a study now; its running trials count as stopped early."""
    store = store_of(study)
    from study.control.lifecycle import stop_study

    _answer(store, stop_study(store), as_json=as_json)
    if store.load().state == "stopped":
        _show_in_mlflow(store, told(as_json))


@click.command()
@click.argument("study")
@click.option("--trials", type=click.IntRange(min=1), help="So many trials more.")
@click.option("--hours", type=POSITIVE, help="So many hours of driving more.")
@click.option("--gpu-hours", type=POSITIVE, help="So many GPU-hours more.")
@json_option
def extend(study: str, trials: int | None, hours: float | None, gpu_hours: float | None, as_json: bool) -> None:
    """Raise a study's budget, whether it runs or has finished."""
    store = store_of(study)
    from study.control.lifecycle import extend_study

    said = extend_study(store, trials=trials or 0, hours=hours or 0.0, gpu_hours=gpu_hours or 0.0)
    _answer(store, said, as_json=as_json)


@click.command()
@click.argument("study")
@click.argument("trial", type=click.IntRange(min=0))
@json_option
def rerun(study: str, trial: int, as_json: bool) -> None:
    """Run one trial again, as a new trial with the same parameters."""
    store = store_of(study)
    from study.control.lifecycle import rerun_trial

    _answer(store, rerun_trial(store, trial), as_json=as_json)


@click.command()
@click.argument("study")
@click.argument("trial", type=click.IntRange(min=0))
@click.option("--reason", default="", help="Kept with the trial.")
@json_option
def drop(study: str, trial: int, reason: str, as_json: bool) -> None:
    """Take one trial out of a study: its history stays, it counts nowhere, and the search forgets it."""
    store = store_of(study)
    from study.control.lifecycle import drop_trial

    _answer(store, drop_trial(store, trial, reason), as_json=as_json)
    _show_in_mlflow(store, told(as_json))


def _answer(store: StudyStore, said: str, *, as_json: bool) -> None:
    """What was done; for machines with the study's budget, and what it is and what it is to be now."""
    from study.results.status import live_state

    study = store.load()
    tell(said, as_json=as_json, study=study.name, state=live_state(study), desired=study.desired,
         budget=study.spec.budget.model_dump(mode="json"))  # fmt: skip


def _show_in_mlflow(store: StudyStore, say: Say) -> None:
    from study.tracking import tell_mlflow

    tell_mlflow(store, home(), say)


@click.command()
@click.argument("study")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(study: str, yes: bool, as_json: bool) -> None:
    """Delete a study with its checkpoints and MLflow runs; promoted models stay."""
    store = store_of(study)
    row, trials = store.load(), store.trials()
    if not yes:
        click.confirm(f"delete study {study!r} ({row.state}, {len(trials)} trials) for ever?", abort=True, err=as_json)
    from study.console import Clock
    from study.control.lifecycle import delete_study
    from study.session import services_here

    clock = Clock(aside=as_json)
    services = services_here(home(), clock)
    delete_study(store, bucket=services.bucket, tracking_uri=services.mlflow_uri, say=clock)
    tell(f"study {study!r} is deleted", as_json=as_json, study=study, trials=len(trials))


@click.command()
@click.argument("study")
@click.argument("file", type=FILE)
@replace_option
@json_option
def archive(study: str, file: Path, replace: bool, as_json: bool) -> None:
    """Write everything the database knows of a study to one JSON file; checkpoints stay in S3."""
    store = store_of(study)
    from study.store.archive import export_study, is_archive

    keep_what_is_there(file, "a file of `agft archive`", is_archive, replace=replace)
    counts = export_study(store, file)
    trials, epochs = counts["agft_trial"], counts["agft_epoch"]
    tell(f"{file}: {trials} trials, {epochs} epochs of study {study!r}", as_json=as_json, study=study, file=str(file),
         trials=trials, epochs=epochs)  # fmt: skip


@click.command()
@click.argument("file", type=FILE)
@click.option("--name", help="Give it another name here.")
@json_option
def restore(file: Path, name: str | None, as_json: bool) -> None:
    """Put an archived study into this database, for instance to move it from SQLite to PostgreSQL."""
    from study.store.archive import import_study

    chosen = import_study(database(), file, name=name)
    shown = "AGFT_STUDY_DB" if os.environ.get("AGFT_STUDY_DB") else str(home() / "studies.db")
    tell(f"study {chosen!r} is in {shown}; go on with: agft resume {chosen}\n"
         "its checkpoints stay where they are: `agft delete` of the study that it comes from takes them along",
         as_json=as_json, study=chosen, database=shown)  # fmt: skip
