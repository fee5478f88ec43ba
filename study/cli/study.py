"""`agft resume`, `pause`, `stop`, `extend`, `rerun`, `drop`, `delete`, `archive`, `restore`: light to import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from study.driver.run import Outcome
    from study.spec.config import StudyConfig
    from study.store.store import StudyStore


FILE = click.Path(dir_okay=False, path_type=Path)
MORE = click.FloatRange(min=0, min_open=True)


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the commands. `answering` turns errors into exit codes, `home` says where things are kept."""

    def store_of(name: str) -> StudyStore:
        """The study's store; an unknown name is answered here, before anything heavier is imported."""
        from study.store.database import database_url
        from study.store.store import StudyStore

        store = StudyStore(database_url(home()), name)
        store.load()
        return store

    def show_in_mlflow(store: StudyStore) -> None:
        from study.tracking import tell_mlflow

        tell_mlflow(store, home(), click.echo)

    @main.command()
    @click.argument("study")
    @click.option("--promote", "then_promote", is_flag=True, help="Promote the best trial when the study has ended.")
    @answering
    def resume(study: str, then_promote: bool) -> None:
        """Go on with a study from where it is, on whatever machine this is; Ctrl-C pauses it."""
        from study.artifacts.datasets import check_ready

        store = store_of(study)
        check_ready(store.load().spec)

        sys.exit(resume_here(store, home(), then_promote=then_promote))

    @main.command()
    @click.argument("study")
    @answering
    def pause(study: str) -> None:
        """Ask a running study to pause; `agft resume` goes on with it."""
        store = store_of(study)
        from study.control.lifecycle import pause_study

        click.echo(pause_study(store))

    @main.command()
    @click.argument("study")
    @answering
    def stop(study: str) -> None:
        """End a study now; its running trials count as stopped early."""
        store = store_of(study)
        from study.control.lifecycle import stop_study

        click.echo(stop_study(store))
        if store.load().state == "stopped":
            show_in_mlflow(store)

    @main.command()
    @click.argument("study")
    @click.option("--trials", type=click.IntRange(min=1), help="So many trials more.")
    @click.option("--hours", type=MORE, help="So many hours of driving more.")
    @click.option("--gpu-hours", type=MORE, help="So many GPU-hours more.")
    @answering
    def extend(study: str, trials: int | None, hours: float | None, gpu_hours: float | None) -> None:
        """Raise a study's budget, whether it runs or has finished."""
        store = store_of(study)
        from study.control.lifecycle import extend_study

        click.echo(extend_study(store, trials=trials or 0, hours=hours or 0.0, gpu_hours=gpu_hours or 0.0))

    @main.command()
    @click.argument("study")
    @click.argument("trial", type=click.IntRange(min=0))
    @answering
    def rerun(study: str, trial: int) -> None:
        """Run one trial again, as a new trial with the same parameters."""
        store = store_of(study)
        from study.control.lifecycle import rerun_trial

        click.echo(rerun_trial(store, trial))

    @main.command()
    @click.argument("study")
    @click.argument("trial", type=click.IntRange(min=0))
    @click.option("--reason", default="", help="Kept with the trial.")
    @answering
    def drop(study: str, trial: int, reason: str) -> None:
        """Take one trial out of a study: its history stays, it counts nowhere, and the search forgets it."""
        store = store_of(study)
        from study.control.lifecycle import drop_trial

        click.echo(drop_trial(store, trial, reason))
        show_in_mlflow(store)

    @main.command()
    @click.argument("study")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @answering
    def delete(study: str, yes: bool) -> None:
        """Delete a study with its checkpoints and MLflow runs; promoted models stay."""
        store = store_of(study)
        row, trials = store.load(), store.trials()
        if not yes:
            click.confirm(f"delete study {study!r} ({row.state}, {len(trials)} trials) for ever?", abort=True)
        from study.console import Clock
        from study.control.lifecycle import delete_study
        from study.session import services_here

        clock = Clock()
        services = services_here(home(), clock)
        delete_study(store, bucket=services.bucket, tracking_uri=services.mlflow_uri, say=clock)
        click.echo(f"study {study!r} is deleted")

    @main.command()
    @click.argument("study")
    @click.argument("file", type=FILE)
    @answering
    def archive(study: str, file: Path) -> None:
        """Write everything the database knows of a study to one JSON file; checkpoints stay in S3."""
        store = store_of(study)
        from study.store.archive import export_study

        counts = export_study(store, file)
        click.echo(f"{file}: {counts['agft_trial']} trials, {counts['agft_epoch']} epochs of study {study!r}")

    @main.command()
    @click.argument("file", type=FILE)
    @click.option("--name", help="Give it another name here.")
    @answering
    def restore(file: Path, name: str | None) -> None:
        """Put an archived study into this database, for instance to move it from SQLite to PostgreSQL."""
        from study.store.archive import import_study
        from study.store.database import database_url

        chosen = import_study(database_url(home()), file, name=name)
        shown = "AGFT_STUDY_DB" if os.environ.get("AGFT_STUDY_DB") else str(home() / "studies.db")
        click.echo(f"study {chosen!r} is in {shown}; go on with: agft resume {chosen}")
        click.echo(
            "its checkpoints stay where they are: `agft delete` of the study that it comes from takes them along"
        )


def run_here(spec: StudyConfig, home: Path, *, then_promote: bool) -> int:
    """Run a study (or go on with it) and show it; the exit code."""
    from study.search.prior import check_prior
    from study.store.database import database_url
    from study.store.store import StudyStore

    store = StudyStore(database_url(home), spec.name)
    check_prior(store.url, spec)
    store.create(spec)  # refuses another spec before anything is started
    return resume_here(store, home, then_promote=then_promote)


def resume_here(store: StudyStore, home: Path, *, then_promote: bool) -> int:
    """Drive a stored study from where it is, and show it; exit code 0 when it has ended, 1 when it can go on."""
    from study.console import Clock, wide_console
    from study.control.logs import copied_output
    from study.driver.messages import Notifier
    from study.driver.run import run_study
    from study.session import cluster_here, services_here

    clock = Clock()
    store.refuse_if_driven_here()
    spec = store.load().spec
    clock(f"study {spec.name}: {spec.budget.trials} trials; Ctrl-C pauses it")
    Notifier.from_environment(os.environ)  # a wrong address is answered before anything is started
    services = services_here(home, clock)
    promotion = None
    kept_output = copied_output(home / "logs", bucket=services.bucket, store=store)
    with kept_output, cluster_here(clock) as cluster:
        outcome = run_study(
            spec, database=store.url, cluster=cluster, bucket=services.bucket, tracking_uri=services.mlflow_uri,
            say=clock, report=home / "reports" / spec.name,
        )  # fmt: skip
        _show(store, home, outcome, here=services.home is not None)
        if outcome.state == "paused":
            clock(f"paused; nothing is lost. Go on with: agft resume {spec.name}")
            return 1
        if then_promote:
            from study.cli.promote import promote_on  # it measures, so it imports torch

            promotion = promote_on(store, services, cluster, clock)
    if promotion:
        from study.cli.promote import show_promotion

        show_promotion(wide_console(), promotion, services)
    print(f"\nMLflow UI: {outcome.mlflow_page}")
    if services.home:
        print(f"           user {services.mlflow_username}, password: mlflow_password in {services.home}/secrets.json")
        print("           `agft stack down` stops the services; data stays")
    return 0


def _show(store: StudyStore, home: Path, outcome: Outcome, *, here: bool) -> None:
    from study.cli.tables import trials_table
    from study.console import percent, wide_console
    from study.results.ranking import best_trial

    study = store.load()
    goal, clip = study.goal, study.baseline
    assert goal is not None
    assert clip is not None
    console = wide_console()
    console.print()
    console.print(trials_table(study.spec, outcome.trials, goal))
    best = best_trial(outcome.trials, goal)
    if best is None or best.last is None:
        console.print("no full-length trial reaches every floor yet")
    else:
        own = best.last
        console.print(
            f"best: trial {best.number}, epoch {own.best_epoch}: clean {percent(own.best_clean_accuracy)} "
            f"(unmodified CLIP {percent(clip.clean_accuracy)}), robust {percent(own.best_robust_accuracy)} "
            f"(unmodified CLIP {percent(clip.robust_accuracy)})"
        )
    if here:
        console.print(f"report: {home / 'reports' / study.name / 'report.html'}")
    else:  # this may be a node of a cluster that its reader cannot see into
        console.print(f"report: in the study's run in MLflow, and where you call `agft report {study.name}`")
