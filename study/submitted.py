"""First lines of a submitted driver: `python -m study.submitted STUDY CREATED_MS`, run by Ray on the cluster.

Says in plain words what this cluster lacks, then goes on as `agft resume STUDY`.
"""

from __future__ import annotations

import os
import sys

from infra.cluster import connect
from infra.errors import UserError as InfraUserError
from infra.node_check import check_nodes
from infra.services import default_home, services_from_environment
from study.database import database_url
from study.errors import SERVICE_ERRORS, USER_ERRORS, UserError
from study.interrupts import hear_interrupts
from study.store import StudyStore

__all__ = ["main"]


def check_here(name: str, created_ms: int) -> StudyStore:
    """The study's store as this node's environment gives it, if it is the one that the study was put into."""
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
    hear_interrupts()  # `ray start` may have been a script's background process, and all that Ray starts inherits it
    name, created_ms = sys.argv[1], int(sys.argv[2])
    try:
        store = check_here(name, created_ms)
        if (desired := store.load().desired) != "run":
            print(f"study {name!r}: somebody asked for {desired} before this driver came; `agft submit` starts another")
            return 0
        connect()
        check_nodes()
        from study.session import resume_here

        return resume_here(store, default_home(os.environ), then_promote=False)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return 2
    except SERVICE_ERRORS as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
