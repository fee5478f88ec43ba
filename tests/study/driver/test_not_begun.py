"""S3 refuses the very first question of a driver: the study waits, and whoever drives it says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cluster.cluster import Cluster
from infra.services import Services
from study.cli.here.study import _show
from study.comparison.file import parse_comparison
from study.comparison.run import _finish
from study.console import Clock
from study.driver import run as driving
from study.driver.messages import paused_line
from study.driver.run import run_study
from study.errors import StudyFailed
from study.promotion.retrain import retrain
from study.store.store import StudyStore
from tests.study.comparison.test_compare import FILE
from tests.support.light import light_study
from tests.support.services.gate import gate
from tests.support.studies import synthetic_study

CLUSTER = Cluster("nowhere", True, None, ({"CPU": 4.0, "memory": 8e9},))
NOBODY = "http://127.0.0.1:9"
WHY = "The provided token has expired"


@pytest.fixture(autouse=True)
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(driving, "MLFLOW_PATIENCE_SECONDS", 0.1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "k")
    with gate(NOBODY) as s3:
        s3.habit = "expired"
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.address)
        yield


def test_the_study_is_paused_with_the_reason_and_there_is_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = light_study("first")
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", spec.name)
    store.create(spec)
    outcome = run_study(spec, database=store.url, cluster=CLUSTER, bucket="b", tracking_uri=NOBODY, say=lambda _: None)
    assert outcome.state == "paused"
    _show(store, tmp_path, outcome, here=True)
    assert capsys.readouterr().out == ""
    line = paused_line(outcome.message, "agft resume first")
    assert line.startswith("paused: ")
    assert WHY in line
    assert line.endswith("; nothing is lost. Go on with agft resume first")


def test_a_comparison_says_which_study_waits_and_why(tmp_path: Path) -> None:
    comparison = parse_comparison(FILE, source="compare.yaml")
    database = f"sqlite:///{tmp_path}/studies.db"
    for study in comparison.searches.values():
        StudyStore(database, study.name).create(study)
    services = Services(NOBODY, "r", "k", "k", "b", NOBODY, "u", "p")
    left = _finish(comparison, database, tmp_path, services, CLUSTER, Clock())
    assert left.startswith("study two-agft is paused: ")
    assert WHY in left


def test_fresh_seeds_that_wait_say_why(tmp_path: Path) -> None:
    store = synthetic_study(tmp_path, trials=1, finished=True)
    with pytest.raises(StudyFailed, match=f"are paused: .*{WHY}.*the same command goes on"):
        retrain(
            store, store.load(), store.trials()[0], [5], cluster=CLUSTER, bucket="b", tracking_uri=NOBODY,
            say=lambda _: None,
        )  # fmt: skip
