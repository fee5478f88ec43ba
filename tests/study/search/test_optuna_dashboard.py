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

from study.spec.files import parse_study
from tests.support.epochs import epoch_record
from tests.support.hand import Hand, measured
from tests.support.services.databases import postgres
from tests.support.studies import SPEC
from trainers.schema.records import Ending

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
    hand = Hand(measured(database, parse_study(SPEC.replace("NAME", "shown"), source="")))
    for number in range(5):
        assert hand.start()["number"] == number
        hand.report(number, epoch_record(1, number / 10))
        if number < 4:
            hand.end(number, Ending(outcome="finished" if number < 3 else "stopped"))


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
