"""`python tests/support/promote_once.py STUDY [--ray]`: one promotion in a process of its own, which a test can kill.

Without `--ray` no cluster is started: everything must be measured already.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Promote the study in the home `AGFT_HOME`; prints how it ended."""
    from infra.cluster.cluster import connect, disconnect
    from infra.services import default_home, services_from_environment
    from study.cli.here.registry import run_of
    from study.promotion.promote import promote
    from study.promotion.records import Order, Site
    from study.store.database import database_url
    from study.store.store import StudyStore

    store = StudyStore(database_url(default_home(os.environ)), sys.argv[1])
    services = services_from_environment(os.environ)
    assert services is not None
    cluster = connect(num_cpus=1) if "--ray" in sys.argv else None
    try:
        site = Site(services.bucket, services.mlflow_uri, cluster, print, run_of(store, services))  # type: ignore[arg-type]
        print(promote(store, Order(), site).state, flush=True)
    finally:
        disconnect()


if __name__ == "__main__":
    main()
