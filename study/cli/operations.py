"""`agft backup`, `restore-backup`, `doctor`, `metrics`: keeping a whole stack in order."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from study.cli.edge import FILE, database, home, json_option, keep_what_is_there, print_json, replace_option, tell
from study.errors import UserError

if TYPE_CHECKING:
    from infra.checks.diagnosis import Diagnosis

CHECKS = "doctor-"  # names of the threads of checks
MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[bold red]FAILED[/]", "skipped": "-"}
PORT = 9465  # of `agft metrics`


@click.command()
@click.argument("place", metavar="FILE|s3://...")
@click.option("--objects", metavar="FOLDER|s3://...", help="Copy checkpoints, logs and promoted weights there as "
              "well; what is there already is left alone.")  # fmt: skip
@replace_option
@json_option
def backup(place: str, objects: str | None, replace: bool, as_json: bool) -> None:
    """Write all studies and the champions' records to one file, also while studies run."""
    from study.console import Clock
    from study.operations.backup import S3, is_backup, refuse_object, write_backup
    from study.session import services_here

    if not place.startswith(S3):
        keep_what_is_there(Path(place), "a backup", is_backup, replace=replace)
    clock = Clock(aside=as_json)
    services = services_here(home(), clock)
    if place.startswith(S3) and not replace:
        refuse_object(place)
    made = write_backup(database(), services.bucket, place, objects=objects, say=clock)
    if as_json:
        print_json(asdict(made))
        return
    click.echo(f"{place}: {made.studies} studies, {made.trials} trials, {made.champions} champions")
    size = f"{made.objects} objects ({made.object_bytes / 1e6:.1f} MB)"
    if made.copied is None:
        click.echo(f"{size} stay in the bucket only: --objects copies them as well")
    else:
        click.echo(f"{size} are in {objects}, {made.copied} of them copied now")


@click.command("restore-backup")
@click.argument("place", metavar="FILE|s3://...")
@click.option("--objects", metavar="FOLDER|s3://...", help="Where the copies of the objects are now.  "
              "[default: where `agft backup` put them]")  # fmt: skip
@json_option
def restore(place: str, objects: str | None, as_json: bool) -> None:
    """Put a backup into this stack: studies, champions, and what their trials go on from."""
    from study.console import Clock
    from study.operations.restore import restore_backup
    from study.session import services_here

    clock = Clock(aside=as_json)
    services = services_here(home(), clock)
    done = restore_backup(
        database(), services.bucket, place, objects=objects, tracking_uri=services.mlflow_uri, say=clock
    )
    if as_json:
        print_json(asdict(done))
        return
    word = f" ({len(done.there_already)} were there already)" if done.there_already else ""
    click.echo(f"{len(done.studies)} studies{word}: {', '.join(done.studies) or 'none'}")
    for name, head in done.champions.items():
        click.echo(f"champion of {name}: version {head['champion']}")
    click.echo(f"{done.objects} objects copied; {done.lacking} that the backup lists are not in the bucket")
    lost = f", {done.anew} of them from the start: their checkpoints are nowhere" if done.anew else ""
    click.echo(f"{done.unfinished} unfinished trials go on with `agft resume STUDY`{lost}")


@click.command()
@click.argument("study_file", metavar="[FILE]", required=False, type=FILE)
@click.option("--address", help="A cluster's dashboard, http://HEAD:8265, to be checked by a job on it.  [default: "
              "RAY_API_SERVER_ADDRESS; RAY_ADDRESS]")  # fmt: skip
@json_option
def doctor(study_file: Path | None, address: str | None, as_json: bool) -> None:
    """Check services, database, machine and every Ray node; with a study FILE, its data, weights and GPUs, too.

    Starts and changes nothing. Exit code 1 if something failed; warnings are allowed.
    """
    from study.doctor.doctor import examine, exit_code
    from study.doctor.study import needs_of

    needs = needs_of(study_file) if study_file else None
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # Ray says what it thinks where the findings go
        found = examine(home(), needs, address=address)
    if as_json:
        print_json([finding.as_json() for finding in found])
    else:
        _show(found, time.monotonic() - began)
    if any(thread.name.startswith(CHECKS) for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(exit_code(found))  # a check hangs, and so would what Python and Ray do at an ordinary end
    sys.exit(exit_code(found))


def _show(found: Sequence[Diagnosis], seconds: float) -> None:
    from rich.markup import escape
    from rich.table import Table

    from study.console import wide_console

    console = wide_console()
    places = list(dict.fromkeys(finding.where for finding in found))
    for place in places:
        rows = [finding for finding in found if finding.where == place]
        table = Table(title=place, title_justify="left", show_lines=False)
        for name in ("check", "", "found"):
            table.add_column(name, overflow="fold")
        for row in rows:
            remedy = f"\n[bold]-> {escape(row.remedy)}[/]" if row.remedy else ""
            table.add_row(escape(row.check), MARKS[row.state], escape(row.detail) + remedy)
        console.print(table)
    count = {state: sum(finding.state == state for finding in found) for state in MARKS}
    console.print(f"{len(found)} findings in {seconds:.1f} s: {count['failed']} failed, {count['warning']} warnings")


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any free one.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--once", is_flag=True, help="Print them and end: for a node exporter's textfile collector.")
@json_option
def metrics(port: int, bind: str, once: bool, as_json: bool) -> None:
    """Serve metrics of all studies to Prometheus, until Ctrl-C; a token is demanded."""
    from infra.stack.processes import kept_secret
    from study.operations.metrics import TOKEN_FILE, MetricsServer, exposition

    if once and as_json:
        raise UserError("--once: not with --json; Prometheus has a format of its own, and `agft status --json` another")
    if once:
        click.echo(exposition(database()), nl=False)
        return
    exposition(database())  # a wrong address is answered at once
    token = kept_secret(home() / TOKEN_FILE)
    with MetricsServer(bind, port, token, lambda: exposition(database())) as server:
        host, chosen = server.server_address[:2]
        address, kept = f"http://{host!s}:{chosen}/metrics", str(home() / TOKEN_FILE)
        tell(f"{address}  token: {kept}", as_json=as_json, address=address, token_file=kept)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
