"""`agft gc` on real S3: lists first, deletes only what nothing needs, and never what something points at."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from infra import storage
from study.artifacts.checkpoints import attempt_prefix, keep_file, study_prefix
from study.cli.main import main
from study.models.head import model_prefix
from study.operations import gc
from study.store import tables
from study.store.store import StudyStore
from tests.support.shipped import reserve, ship
from tests.support.studies import synthetic_study
from trainers.files import cache_folder
from trainers.schema.records import At, Weights


@pytest.fixture
def bucket(service_environment: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of its own: what is found in it is the test's."""
    name = f"gc-{secrets.token_hex(6)}"
    storage.client().create_bucket(Bucket=name)
    monkeypatch.setenv("AGFT_BUCKET", name)
    monkeypatch.setenv("AGFT_STUDY_DB", f"sqlite:///{tmp_path}/studies.db")
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    return name


def kept(attempt: str, role: str) -> Weights:
    """As a trial keeps its files."""
    with NamedTemporaryFile() as file:
        Path(file.name).write_bytes(b"0123456789")
        return keep_file(attempt, 1, Path(file.name), role, At(3, 2), 3)


def filled(folder: Path, bucket: str, *, finished: bool) -> StudyStore:
    """A study whose trials have a state and best weights in S3."""
    store = synthetic_study(folder, trials=6, finished=finished)
    prefix = study_prefix(bucket, store.load().slug)
    storage.put_bytes(f"{prefix}/logs/1.txt", b"said")
    for trial in store.trials():
        attempt = attempt_prefix(bucket, store.load().slug, trial.number, 1)
        values = {role: kept(attempt, role).model_dump() for role in ("best", "latest")}
        with store.engine.begin() as connection:
            where = sa.and_(tables.trials.c.study == store.name, tables.trials.c.number == trial.number)
            connection.execute(sa.update(tables.trials).where(where).values(**values))
    return store


def agft(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def found(*arguments: object) -> dict[str, Any]:
    result = agft("gc", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def keys(bucket: str) -> set[str]:
    return {stored.uri for place in ("studies", "models") for stored in storage.list_objects(f"s3://{bucket}/{place}")}


def test_of_a_finished_study_the_states_go_and_what_a_version_was_made_from_stays(bucket: str, tmp_path: Path) -> None:
    store = filled(tmp_path, bucket, finished=True)
    trials = {trial.number: trial for trial in store.trials()}
    source = trials[2].latest
    assert source is not None
    ship(bucket, "robust", tmp_path, source={"uri": source.uri, "sha256": "0" * 64})
    before = keys(bucket)
    assert found()["study"] == []  # without its name a study is not looked at
    dry = found(store.name)
    latest = {trial.latest.uri for trial in trials.values() if trial.latest}
    assert {each["place"] for each in dry["study"]} == latest - {source.uri}
    assert {each["bytes"] for each in dry["study"]} == {10}
    assert keys(bucket) == before
    said = agft("gc", store.name, "--dry-run").stdout
    assert "dry run: nothing was deleted; --yes deletes 5, 50 B" in said
    gone = found(store.name, "--yes")
    assert gone["deleted"] == {"objects": 5, "bytes": 50}
    assert before - keys(bucket) == latest - {source.uri}
    assert found(store.name, "--yes")["deleted"]["objects"] == 0
    # the best two, and the front, keep their weights
    top = {each["place"] for each in found(store.name, "--top", 1)["study"]}
    assert top
    assert top < {trial.best.uri for trial in trials.values()}


def test_a_running_study_and_an_unfinished_trial_lose_nothing(bucket: str, tmp_path: Path) -> None:
    store = filled(tmp_path, bucket, finished=False)
    refused = agft("gc", store.name, "--yes")
    assert refused.exit_code == 2
    assert "is running; pause it first" in refused.stderr
    with store.engine.begin() as connection:
        connection.execute(sa.update(tables.studies).values(lease_expires=None, lease_owner=None, state="paused"))
        connection.execute(
            sa.update(tables.trials).where(tables.trials.c.number == 4).values(state="running", ended_ms=None)
        )
    result = found(store.name, "--yes")
    assert "1 unfinished trials keep everything" in result["notes"][0]
    kept = keys(bucket)
    assert set(store.trial(4).kept.values()) <= kept
    assert store.trial(3).latest.uri not in kept
    assert store.load().state == "paused"
    assert store.load().lease_seconds <= 0


def test_another_databases_study_is_reported_and_deleted_only_on_request(bucket: str, tmp_path: Path) -> None:
    stranger, used = (kept(attempt_prefix(bucket, "other-1", number, 1), "best").uri for number in (0, 1))
    ship(bucket, "robust", tmp_path, source={"uri": used, "sha256": "0" * 64})
    assert [each["place"] for each in found()["strangers"]] == [stranger]
    assert "reported only (--unknown deletes them)" in agft("gc").stdout
    assert found("--yes")["deleted"]["objects"] == 0
    assert {stranger, used} <= keys(bucket)
    assert found("--yes", "--unknown")["deleted"]["objects"] == 1
    assert used in keys(bucket)
    assert stranger not in keys(bucket)


def test_a_version_that_was_never_finished_goes_after_a_day_and_its_number_stays_taken(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ship(bucket, "robust", tmp_path)
    number = reserve(bucket, "robust")
    half = f"{model_prefix(bucket, 'robust', number)}/open_clip_model.safetensors"
    storage.put_bytes(half, b"half")
    assert found()["versions"] == []  # it may be under way
    monkeypatch.setattr(gc, "ABANDONED_SECONDS", -60.0)
    assert [each["place"] for each in found()["versions"]] == [half]
    found("--yes")
    assert half not in keys(bucket)
    assert whole.weights.uri in keys(bucket)
    assert reserve(bucket, "robust") == number + 1


def test_the_cache_loses_what_nobody_has_read_for_long_and_nothing_else(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other = cache_folder() / "weights" / "old" / "w.safetensors", cache_folder() / "env" / "python"
    for path in (old, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"0123")
    assert found()["cache"] == []
    monkeypatch.setattr(gc, "UNUSED_SECONDS", -60.0)
    assert [each["place"] for each in found()["cache"]] == [str(old.parent)]
    found("--yes")
    assert not old.parent.exists()
    assert other.exists()


def test_contradictions_and_unknown_studies_are_answered_before_anything_else(bucket: str) -> None:
    for arguments, words in (
        (("--yes", "--dry-run"), "contradict"), (("--top", 3), "of which STUDY"), (("nothing",), "no study 'nothing'"),
    ):  # fmt: skip
        result = agft("gc", *arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
