"""`agft submit`: a study on a Ray cluster, and the first lines of its driver there.

Ray runs them as `python -m study.cli.cluster STUDY CREATED_MS`.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from study.cli.edge import FILE, answer, answered, database, hear_interrupts, home, json_option, tell, told
from study.errors import UserError

if TYPE_CHECKING:
    from study.store.store import StudyStore


@click.command()
@click.argument("file", type=FILE)
@click.option("--name", help="Run it under another name.")
@click.option("--address", help="The cluster's dashboard, http://HEAD:8265.  [default: RAY_API_SERVER_ADDRESS]")
@click.option("--priority", type=int, help="Goes before studies with a lower one.  [default: the file's]")
@click.option("--working-dir", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Send this code along.  [default: what the nodes have installed]")  # fmt: skip
@click.option("--follow", is_flag=True, help="Show what the driver prints, until it ends.")
@json_option
def submit(
    file: Path, name: str | None, address: str | None, priority: int | None, working_dir: Path | None, follow: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Run a study on a Ray cluster, with its driver there, too: this terminal may go."""
    from infra.cluster.jobs import dashboard_address
    from study.spec.files import load_study

    if follow and as_json:
        raise UserError("--follow: not with --json; `agft logs STUDY -f` follows it")
    spec = load_study(file)
    if name is not None:
        spec = spec.renamed(name)
    if priority is not None:
        spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"priority": priority})})
    place = dashboard_address(address, os.environ)
    from study.control.submit import submit as submit_study
    from study.control.submit import wait_for_driver

    submission = submit_study(
        spec, address=place, database=database(), environ=os.environ, say=told(as_json), working_dir=working_dir
    )
    word = "submitted" if submission.fresh else "is there already"
    told(as_json)(f"study {spec.name}: job {submission.identity} {word} at {place}")
    wait_for_driver(submission, told(as_json))
    if follow:
        from study.cli.watch import show_logs

        sys.exit(show_logs(submission.store, follow=True))
    tell(f"`agft status {spec.name}` shows it, `agft logs {spec.name} -f` follows it, `agft pause {spec.name}` pauses "
         "it, from any terminal with this environment", as_json=as_json, study=spec.name, job=submission.identity,
         fresh=submission.fresh, address=place)  # fmt: skip


# --- the driver, on the cluster: says in plain words what the cluster lacks, then goes on as `agft resume STUDY` ------


def check_here(name: str, created_ms: int) -> StudyStore:
    """The study's store as this node's environment gives it, if it is the one that the study was put into."""
    from infra.services import services_from_environment
    from study.store.store import StudyStore

    if services_from_environment(os.environ) is None:
        raise UserError(
            "the cluster's nodes know no services: set AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AGFT_BUCKET and MLFLOW_TRACKING_URI where `ray start` runs, on every node"
        )
    store = StudyStore(database(), name)
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
    hear_interrupts()  # `ray start` may have been a script's background process, and all that Ray starts inherits it
    from infra.cluster.cluster import connect
    from infra.cluster.node_check import check_nodes
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
        from study.cli.here.study import resume_here

        return resume_here(store, home(), then_promote=False)
    except answered() as error:
        return answer(error)


if __name__ == "__main__":
    sys.exit(main())
