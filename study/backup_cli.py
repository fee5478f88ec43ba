"""`agft backup` and `agft restore-backup`: a whole stack out and in. Light to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["attach"]


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the commands. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.argument("place", metavar="FILE|s3://...")
    @click.option("--objects", metavar="FOLDER|s3://...", help="Copy checkpoints, logs and promoted weights there as "
                  "well; what is there already is left alone.")  # fmt: skip
    @answering
    def backup(place: str, objects: str | None) -> None:
        """Write all studies and the champions' records to one file, also while studies run."""
        from study.backup import write_backup
        from study.console import Clock
        from study.database import database_url
        from study.session import services_here

        clock = Clock()
        services = services_here(home(), clock)
        made = write_backup(database_url(home()), services.bucket, place, objects=objects, say=clock)
        click.echo(f"{place}: {made.studies} studies, {made.trials} trials, {made.champions} champions")
        size = f"{made.objects} objects ({made.object_bytes / 1e6:.1f} MB)"
        if made.copied is None:
            click.echo(f"{size} stay in the bucket only: --objects copies them as well")
        else:
            click.echo(f"{size} are in {objects}, {made.copied} of them copied now")

    @main.command("restore-backup")
    @click.argument("place", metavar="FILE|s3://...")
    @click.option("--objects", metavar="FOLDER|s3://...", help="Where the copies of the objects are now.  "
                  "[default: where `agft backup` put them]")  # fmt: skip
    @answering
    def restore_backup_command(place: str, objects: str | None) -> None:
        """Put a backup into this stack: studies, champions, and what their trials go on from."""
        from study.backup_restore import restore_backup
        from study.console import Clock
        from study.database import database_url
        from study.session import services_here

        clock = Clock()
        services = services_here(home(), clock)
        done = restore_backup(
            database_url(home()), services.bucket, place, objects=objects, tracking_uri=services.mlflow_uri, say=clock
        )
        word = f" ({len(done.there_already)} were there already)" if done.there_already else ""
        click.echo(f"{len(done.studies)} studies{word}: {', '.join(done.studies) or 'none'}")
        for name, head in done.champions.items():
            click.echo(f"champion of {name}: version {head['champion']}")
        click.echo(f"{done.objects} objects copied; {done.lacking} that the backup lists are not in the bucket")
        lost = f", {done.anew} of them from the start: their checkpoints are nowhere" if done.anew else ""
        click.echo(f"{done.unfinished} unfinished trials go on with `agft resume STUDY`{lost}")
