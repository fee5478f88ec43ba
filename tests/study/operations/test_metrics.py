"""Studies as Prometheus sees them: real numbers of the store, behind a token."""

from __future__ import annotations

import http.client
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from study.operations.metrics import STATES, exposition
from study.results.status import study_status
from study.store.store import StudyStore
from tests.support.services.real_run import AGFT, IN_BACKGROUND, read_until
from tests.support.studies import synthetic_study


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, study, other label) -> value, as Prometheus' own parser reads them."""
    return {
        (sample.name, sample.labels.pop("study"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def ask(port: int, path: str = "/metrics", *, token: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token is not None else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_metrics_are_the_numbers_that_status_shows(tmp_path: Path) -> None:
    store = synthetic_study(tmp_path, trials=24)
    other = StudyStore(store.url, "waiting")
    other.create(store.load().spec.model_copy(update={"name": "waiting"}))
    study, trials = store.load(), store.trials()
    shown = study_status(study, trials, 0.0)
    found = samples(exposition(store.url).decode())

    for name in ("running", "queued", "complete", "stopped_early", "failed", "dropped"):
        assert found["agft_study_trials", "synthetic", name] == shown["counts"][name]
    assert found["agft_study_trials_budget", "synthetic"] == 24
    assert found["agft_study_best_accuracy", "synthetic", "robust"] == shown["best"]["robust_accuracy"]
    assert found["agft_study_best_accuracy", "synthetic", "clean"] == shown["best"]["clean_accuracy"]
    assert found["agft_study_unmodified_accuracy", "synthetic", "robust"] == 0.22
    assert found["agft_study_device_seconds_total", "synthetic"] == pytest.approx(3600 * shown["device_hours"])
    assert found["agft_study_epochs_total", "synthetic"] == sum(len(trial.epochs) for trial in trials)
    assert 0 <= found["agft_study_driver_heartbeat_age_seconds", "synthetic"] < 30
    assert found["agft_study_last_report_age_seconds", "synthetic"] >= 0
    assert [found["agft_study_state", "synthetic", each] for each in STATES] == [each == "running" for each in STATES]
    assert found["agft_study_state", "waiting", "queued"] == 1
    assert ("agft_study_driver_heartbeat_age_seconds", "waiting") not in found  # nobody drives it
    assert ("agft_study_best_accuracy", "waiting", "robust") not in found  # nothing is measured


@pytest.fixture(params=[[], IN_BACKGROUND], ids=["in front", "in a script's background"])
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, Path, subprocess.Popen[str]]]:
    """(port, home, process) of `agft metrics` over a home with a study."""
    synthetic_study(tmp_path, trials=2)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AGFT_", "AWS_", "MLFLOW_"))}
    process = subprocess.Popen(
        [*request.param, *AGFT, "metrics", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**clean, "AGFT_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        line = read_until(process, lambda text: "/metrics" in text)
        yield int(line.split("/metrics")[0].rpartition(":")[2]), tmp_path, process
    finally:
        process.kill()
        process.wait()


def test_the_endpoint_gives_nothing_without_its_token(served: tuple[int, Path, subprocess.Popen[str]]) -> None:
    port, home, process = served
    path = home / "metrics_token"
    token = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in " ".join(process.args)  # type: ignore[arg-type]
    status, text = ask(port, token=token)
    assert status == 200
    assert samples(text)["agft_study_trials_budget", "synthetic"] == 2
    for wrong in (None, "", "x", token[:-1], token + "0"):
        assert ask(port, token=wrong) == (401, "a token is demanded\n")
        assert ask(port, "/other", token=wrong)[0] == 401
    assert ask(port, "/", token=token)[0] == 404
    assert ask(port, method="POST", token=token)[0] == 501
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0


def test_once_prints_the_same_and_a_database_that_is_away_is_said(tmp_path: Path) -> None:
    synthetic_study(tmp_path, trials=1)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AGFT_", "AWS_", "MLFLOW_"))}
    command = [*AGFT, "metrics", "--once"]
    done = subprocess.run(
        command, env={**clean, "AGFT_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert samples(done.stdout)["agft_study_trials_budget", "synthetic"] == 1
    away = {**clean, "AGFT_HOME": str(tmp_path), "AGFT_STUDY_DB": "postgresql+psycopg://a:secret@127.0.0.1:9/x"}
    done = subprocess.run(command, env=away, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be used" in done.stderr
    assert "secret" not in done.stderr
