"""`agft resume`, `pause`, `stop`, `extend`, `rerun`, `drop`, `delete`, `archive`, `restore`: light to import."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from study.store import StudyStore

__all__ = ["attach"]

FILE = click.Path(dir_okay=False, path_type=Path)
MORE = click.FloatRange(min=0, min_open=True)


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the commands. `answering` turns errors into exit codes, `home` says where things are kept."""

    def store_of(name: str) -> StudyStore:
        """The study's store; an unknown name is answered here, before anything heavier is imported."""
        from study.database import database_url
        from study.store import StudyStore

        store = StudyStore(database_url(home()), name)
        store.load()
        return store

    def show_in_mlflow(store: StudyStore) -> None:
        from study.tell_mlflow import tell_mlflow

        tell_mlflow(store, home(), click.echo)

    @main.command()
    @click.argument("study")
    @click.option("--promote", "then_promote", is_flag=True, help="Promote the best trial when the study has ended.")
    @answering
    def resume(study: str, then_promote: bool) -> None:
        """Go on with a study from where it is, on whatever machine this is; Ctrl-C pauses it."""
        from study.data import check_ready

        store = store_of(study)
        check_ready(store.load().spec)
        from study.session import resume_here

        sys.exit(resume_here(store, home(), then_promote=then_promote))

    @main.command()
    @click.argument("study")
    @answering
    def pause(study: str) -> None:
        """Ask a running study to pause; `agft resume` goes on with it."""
        store = store_of(study)
        from study.lifecycle import pause_study

        click.echo(pause_study(store))

    @main.command()
    @click.argument("study")
    @answering
    def stop(study: str) -> None:
        """End a study now; its running trials count as stopped early."""
        store = store_of(study)
        from study.lifecycle import stop_study

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
        from study.lifecycle import extend_study

        click.echo(extend_study(store, trials=trials or 0, hours=hours or 0.0, gpu_hours=gpu_hours or 0.0))

    @main.command()
    @click.argument("study")
    @click.argument("trial", type=click.IntRange(min=0))
    @answering
    def rerun(study: str, trial: int) -> None:
        """Run one trial again, as a new trial with the same parameters."""
        store = store_of(study)
        from study.lifecycle import rerun_trial

        click.echo(rerun_trial(store, trial))

    @main.command()
    @click.argument("study")
    @click.argument("trial", type=click.IntRange(min=0))
    @click.option("--reason", default="", help="Kept with the trial.")
    @answering
    def drop(study: str, trial: int, reason: str) -> None:
        """Take one trial out of a study: its history stays, it counts nowhere, and the search forgets it."""
        store = store_of(study)
        from study.lifecycle import drop_trial

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
        from study.lifecycle import delete_study
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
        from study.archive import export_study

        counts = export_study(store, file)
        click.echo(f"{file}: {counts['agft_trial']} trials, {counts['agft_epoch']} epochs of study {study!r}")

    @main.command()
    @click.argument("file", type=FILE)
    @click.option("--name", help="Give it another name here.")
    @answering
    def restore(file: Path, name: str | None) -> None:
        """Put an archived study into this database, for instance to move it from SQLite to PostgreSQL."""
        from study.archive import import_study
        from study.database import database_url

        chosen = import_study(database_url(home()), file, name=name)
        shown = "AGFT_STUDY_DB" if os.environ.get("AGFT_STUDY_DB") else str(home() / "studies.db")
        click.echo(f"study {chosen!r} is in {shown}; go on with: agft resume {chosen}")
        click.echo(
            "its checkpoints stay where they are: `agft delete` of the study that it comes from takes them along"
        )
