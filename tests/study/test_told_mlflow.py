"""What a command says of records that MLflow has not got: how many, and why."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ServiceError
from infra.services import Services
from study import tracking
from study.control.lifecycle import delete_study
from study.operations.restore import _ship
from study.store.store import DELETING, StudyStore, study_names
from tests.support.services.answering import answering
from tests.support.studies import synthetic_study


def refusing(status: int, code: str, message: str) -> AbstractContextManager[str]:
    """A server that refuses everything as MLflow does."""
    return answering(status, json.dumps({"error_code": code, "message": message}).encode())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return synthetic_study(tmp_path_factory.mktemp("study"), trials=1, finished=True)


def told(store: StudyStore, home: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "r", "AGFT_BUCKET": "b",
                        "MLFLOW_TRACKING_URI": uri}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    said: list[str] = []
    tracking.tell_mlflow(store, home, said.append)
    return said[0]


def test_records_that_mlflow_refuses_are_counted_and_the_first_reason_said(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with refusing(400, "INVALID_PARAMETER_VALUE", "no such thing") as uri:
        assert "records (refused: " in (text := told(store, tmp_path, uri, monkeypatch))
        assert "no such thing" in text
        _ship(store.url, [store.name], uri, said.append)
    assert said[1].startswith(f"warning: MLflow at {uri} has not got ")
    assert "no such thing" in said[1]


def test_a_server_that_refuses_the_user_is_not_said_to_be_silent(
    store: StudyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.5)
    with refusing(403, "PERMISSION_DENIED", "may not") as uri:
        assert "(refuses our credentials: PERMISSION_DENIED: may not)" in told(store, tmp_path, uri, monkeypatch)


def test_a_deletion_that_mlflow_stops_is_one_message_and_goes_on_by_the_same_command(
    service_environment: Services, tmp_path: Path
) -> None:
    store = synthetic_study(tmp_path, name="halfway", trials=1, finished=True)
    place: dict[str, Any] = {"bucket": service_environment.bucket, "say": lambda text: None}
    with (
        refusing(403, "PERMISSION_DENIED", "may not delete") as uri,
        pytest.raises(ServiceError, match=r"half deleted.*may not delete.*agft delete halfway"),
    ):
        delete_study(store, tracking_uri=uri, **place)
    assert store.load().state == DELETING
    delete_study(store, tracking_uri=service_environment.mlflow_uri, **place)
    assert "halfway" not in study_names(store.url)
