"""`agft submit`, `status` and `logs`: a study on a cluster, seen from any terminal. Light to import."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infra.errors import UserError as InfraUserError
from study.errors import SERVICE_ERRORS, USER_ERRORS, UserError

if TYPE_CHECKING:
    from study.store.store import StudyStore


REFRESH_SECONDS = 3.0
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the commands. `answering` turns errors into exit codes, `home` says where things are kept."""

    def url() -> str:
        from study.store.database import database_url

        return database_url(home())

    def store_of(name: str) -> StudyStore:
        from study.store.store import StudyStore

        return StudyStore(url(), name)

    @main.command()
    @click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
    @click.option("--name", help="Run it under another name.")
    @click.option("--address", help="The cluster's dashboard, http://HEAD:8265.  [default: RAY_API_SERVER_ADDRESS]")
    @click.option("--priority", type=int, help="Goes before studies with a lower one.  [default: the file's]")
    @click.option("--working-dir", type=FOLDER, help="Send this code along.  [default: what the nodes have installed]")
    @click.option("--follow", is_flag=True, help="Show what the driver prints, until it ends.")
    @answering
    def submit(
        file: Path, name: str | None, address: str | None, priority: int | None, working_dir: Path | None, follow: bool
    ) -> None:
        """Run a study on a Ray cluster, with its driver there, too: this terminal may go."""
        from infra.cluster.jobs import dashboard_address
        from study.spec.files import load_study

        spec = load_study(file)
        if name is not None:
            spec = spec.renamed(name)
        if priority is not None:
            spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"priority": priority})})
        place = dashboard_address(address, os.environ)
        from study.control.submit import submit as submit_study
        from study.control.submit import wait_for_driver

        submission = submit_study(
            spec, address=place, database=url(), environ=os.environ, say=click.echo, working_dir=working_dir
        )
        word = "submitted" if submission.fresh else "is there already"
        click.echo(f"study {spec.name}: job {submission.identity} {word} at {place}")
        wait_for_driver(submission, click.echo)
        if follow:
            sys.exit(show_logs(submission.store, follow=True))
        click.echo(f"`agft status {spec.name}` shows it, `agft logs {spec.name} -f` follows it, "
                   f"`agft pause {spec.name}` pauses it, from any terminal with this environment")  # fmt: skip

    def show_logs(store: StudyStore, *, follow: bool) -> int:
        from study.artifacts.sources import storage_here
        from study.control.logs import follow_logs, print_logs

        storage_here(home(), lambda text: click.echo(text, err=True))
        bucket = os.environ.get("AGFT_BUCKET") or "agft"

        def write(text: str) -> None:
            click.echo(text, nl=False)

        if not follow:
            if not print_logs(store, bucket, write):
                click.echo(f"no driver of {store.name!r} has written anything yet", err=True)
            return 0
        state = follow_logs(store, bucket, write)
        click.echo(f"study {store.name!r} is {state}", err=True)
        return 0 if state in ("finished", "stopped") else 1

    @main.command()
    @click.argument("study")
    @click.option("-f", "--follow", is_flag=True, help="Go on until the study's driver ends.")
    @answering
    def logs(study: str, follow: bool) -> None:
        """Show what a study's drivers printed, wherever they ran; exit code 0 of -f: the study has ended."""
        store = store_of(study)
        store.load()
        try:
            sys.exit(show_logs(store, follow=follow))
        except KeyboardInterrupt:
            click.echo(f"\nno longer following; {study!r} goes on", err=True)

    @main.command()
    @click.argument("study", required=False)
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @click.option("--watch", is_flag=True, help="Again every 3 s, until Ctrl-C.")
    @answering
    def status(study: str | None, as_json: bool, watch: bool) -> None:
        """Show all studies, or one with its trials and attempts, wherever they run."""
        from study.errors import UserError

        if as_json and watch:
            raise UserError("--watch: not with --json; ask again instead")
        if not watch:
            print_status(study, url(), as_json=as_json)
            return
        try:
            while True:
                click.clear()
                print_status(study, url(), as_json=False)
                time.sleep(REFRESH_SECONDS)
        except KeyboardInterrupt:
            return


def print_status(study: str | None, database: str, *, as_json: bool) -> None:
    """All studies of `database`, or one."""
    from study.cli.tables import advice, attempts_table, studies_table, trials_table
    from study.console import wide_console
    from study.results.status import study_status
    from study.store.database import engine_for, now
    from study.store.store import StudyStore, study_names

    names = [study] if study else study_names(database)
    with engine_for(database).connect() as connection:
        clock = now(connection)
    rows = [((store := StudyStore(database, name)).load(), store.trials()) for name in names]
    statuses = [study_status(row, trials, clock) for row, trials in rows]
    if as_json:
        click.echo(json.dumps(statuses, indent=2))
        return
    if not rows:
        click.echo("no studies yet; start one with `agft run FILE`, or `agft submit FILE` on a cluster")
        return
    console = wide_console()
    console.print(studies_table(statuses))
    if not study:
        if silent := [each["study"] for each in statuses if each["state"] == "interrupted"]:
            console.print(f"interrupted: {', '.join(silent)}; `agft status STUDY` says what to do")
        return
    [(row, trials)], [found] = rows, statuses
    live = found["state"] == "running"
    if row.baseline:
        goal, token = row.spec.goal.resolve(row.baseline), row.token if live else None
        console.print(trials_table(row.spec, trials, goal, token=token))
    if any(len(trial.attempts) > 1 for trial in trials):
        console.print(attempts_table(trials, row.token, clock, live=live))
    for text in (found["message"], advice(found)):
        if text:
            console.print(f"{found['state']}: {text}", soft_wrap=True)


# First lines of a submitted driver: `python -m study.cli.cluster STUDY CREATED_MS`, run by Ray on the cluster.
#
# Says in plain words what this cluster lacks, then goes on as `agft resume STUDY`.


def check_here(name: str, created_ms: int) -> StudyStore:
    """The study's store as this node's environment gives it, if it is the one that the study was put into."""
    from infra.services import default_home, services_from_environment
    from study.store.database import database_url
    from study.store.store import StudyStore

    if services_from_environment(os.environ) is None:
        raise InfraUserError(
            "the cluster's nodes know no services: set AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AGFT_BUCKET and MLFLOW_TRACKING_URI where `ray start` runs, on every node"
        )
    store = StudyStore(database_url(default_home(os.environ)), name)
    wrong = f"study {name!r} is not in the study database of this node: "
    named = "AGFT_STUDY_DB names another database" if os.environ.get("AGFT_STUDY_DB") else "AGFT_STUDY_DB is not set"
    try:
        created = store.load().created_ms
    except UserError:
        raise UserError(f"{wrong}{named} where `ray start` ran") from None
    if created != created_ms:
        raise UserError(f"{wrong}there is another one of that name; {named} where `ray start` ran")
    return store


def main() -> int:
    """The exit code: 0 when the study has ended, 1 when it can go on or a service failed, 2 for wrong settings."""
    from study.interrupts import hear_interrupts

    hear_interrupts()  # `ray start` may have been a script's background process, and all that Ray starts inherits it
    from infra.cluster.cluster import connect
    from infra.cluster.node_check import check_nodes
    from infra.services import default_home
    from study.spec.outside import outside_entries
    from trainers.table import lacking

    name, created_ms = sys.argv[1], int(sys.argv[2])
    try:
        store = check_here(name, created_ms)
        if (desired := store.load().desired) != "run":
            print(f"study {name!r}: somebody asked for {desired} before this driver came; `agft submit` starts another")
            return 0
        connect()
        check_nodes(partial(lacking, list(outside_entries(store.load().spec).values())))
        from study.cli.study import resume_here

        return resume_here(store, default_home(os.environ), then_promote=False)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    except SERVICE_ERRORS as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
