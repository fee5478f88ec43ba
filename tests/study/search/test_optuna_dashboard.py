"""optuna-dashboard, as anybody installs it, opens the study that lies in our database."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from study.search.optuna_book import OptunaBook
from study.spec.files import parse_study
from study.store.store import StudyStore
from tests.support.services.databases import postgres
from tests.support.studies import SPEC

pytestmark = pytest.mark.slow
START_SECONDS = 90.0


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'studies.db'}"
        return
    with postgres() as url:
        yield url


def fill(database: str) -> None:
    """Five proposals of ours in Optuna's tables: three complete, one stopped early, one running."""
    store = StudyStore(database, "shown")
    spec = parse_study(SPEC.replace("NAME", "shown"), source="")
    store.create(spec)
    token = store.acquire("here|1|1.00")
    book = OptunaBook(store, spec, {"clean_accuracy": 0.5})
    book.enqueue_warm_starts()
    for place in range(5):
        number, params = book.propose()
        store.start_trial(token, number, params, {})
        record = {"epoch": 1, "best_clean_accuracy": 0.6, "best_robust_accuracy": place / 10, "best_feasible": True}
        store.record(token, number, [record], latest=None, best=None, device_seconds=1.0)
        if place < 4:
            book.tell(store.finish_trial(token, number, "complete" if place < 3 else "pruned"))


@contextmanager
def dashboard(database: str) -> Iterator[str]:
    program = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*program, database, "--port", str(port), "--host", "127.0.0.1"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, "optuna-dashboard ended at once"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10).close()
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline, "optuna-dashboard does not answer"
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        process.terminate()
        process.wait(30)


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def test_the_dashboard_shows_our_study_with_its_trials_states_and_values(database: str) -> None:
    fill(database)
    with dashboard(database) as api:
        (summary,) = get(f"{api}/studies")["study_summaries"]
        assert summary["study_name"] == "agft/shown"
        study = get(f"{api}/studies/{summary['study_id']}")
    assert study["directions"] == ["maximize"]
    states = [trial["state"] for trial in study["trials"]]
    assert states == ["Complete"] * 3 + ["Pruned", "Running"]
    assert [trial["values"] for trial in study["trials"][:3]] == [[0.0], [0.1], [0.2]]
    names = {each["name"] for each in study["trials"][0]["params"]}
    assert {"method.scale_ratio", "attack.eps", "train.optimizer.lr"} <= names
