"""A live page's server, of the home that a file's `store` is in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack.embedded import credentials
from study.live.doing import Doing
from study.live.server import Server
from study.store.store import StudyStore


@pytest.fixture(scope="module")
def server(store: StudyStore) -> Iterator[Server]:
    home = Path(str(store.engine.url.database)).parent
    with Server(0, store.url, credentials(home)["mlflow_password"], Doing(home)) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield one
        one.shutdown()
        thread.join()
