"""What is sent again later, and what MLflow refuses for good."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import NoCredentialsError
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from infra.services import Services
from infra.tracking.calls import connect, outage
from infra.tracking.runs import Tracker
from tests.support.services.answering import answering
from tests.support.services.gate import HABITS, Refusal, gate


def why_later(status: int, body: bytes) -> str | None:
    with answering(status, body) as uri, pytest.raises(Exception) as refused:  # noqa: PT011
        connect(uri).create_experiment("e")
    return outage(refused.value)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [400, 404, 499, 502])
def test_a_page_of_a_proxy_is_an_outage(status: int) -> None:
    assert str(status) in (why_later(status, b"<html>no upstream</html>") or "")


def test_what_mlflow_itself_refuses_and_what_no_proxy_will_ever_let_through_are_for_good() -> None:
    assert why_later(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}') is None
    assert why_later(413, b"<html>too large</html>") is None


@pytest.fixture
def straight_to_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file for an artifact root in S3, which MLflow's client writes by itself; keys are given, one attempt made."""
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_MAX_ATTEMPTS": "1",
                        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
                        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / "note.txt").write_text("text")
    return tmp_path / "note.txt"


def stored(file: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
    with pytest.raises(Exception) as refused:  # noqa: PT011
        S3ArtifactRepository("s3://bucket/run").log_artifact(str(file))
    return outage(refused.value)  # type: ignore[arg-type]


def test_artifacts_wait_for_a_storage_that_is_away_or_refuses_the_keys(
    straight_to_s3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot be used" in (stored(straight_to_s3, "http://127.0.0.1:9", monkeypatch) or "")
    with gate("http://127.0.0.1:9") as one:
        for habit in ("expired", "busy", "readonly", "full"):
            one.habit = habit
            assert stored(straight_to_s3, one.address, monkeypatch), habit
    assert "no S3 credentials" in (outage(NoCredentialsError()) or "")


def test_an_artifact_for_a_bucket_that_is_not_there_waits_for_it(
    straight_to_s3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"<Error><Code>NoSuchBucket</Code><Message>no such bucket</Message></Error>"
    with answering(404, text) as uri:
        assert "no such bucket" in (stored(straight_to_s3, uri, monkeypatch) or "")


def test_artifacts_that_wait_cost_a_new_record_nothing(
    service_environment: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HABITS, "no-artifacts", Refusal(503, "", "", ("PUT",)))
    client = connect(service_environment.mlflow_uri)
    with gate(service_environment.mlflow_uri, own_host=True) as one:
        one.habit = "no-artifacts"
        tracker = Tracker(one.address, "artifacts wait")
        tracker.ensure_run("t", name="t", params={}, tags={}, start_time_ms=1)
        for number in range(20):
            tracker.log_text("t", "text", f"{number}.txt")
        while one.refused < 2:
            time.sleep(0.05)
        tracker.finish("t", "FINISHED", 2)
        deadline = time.monotonic() + 3.0
        while tracker.flush(0.2) > 20 and time.monotonic() < deadline:
            continue
        assert tracker.flush(0.0) == 20, "the artifacts alone"
        assert client.get_run(tracker.run_id("t")).info.status == "FINISHED"
        one.habit = ""
        assert tracker.close(30.0) == 0
        assert len(client.list_artifacts(tracker.run_id("t"))) == 20
