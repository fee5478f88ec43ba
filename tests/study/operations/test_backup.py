"""A stack as one file, and back into an empty one: studies, champions and what unfinished trials go on from."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from infra import storage
from infra.services import Services
from study.errors import StudyFailed, UserError
from study.models.head import model_prefix, read_head, read_manifest
from study.models.looks import claim_look, read_looks
from study.operations.backup import write_backup
from study.operations.restore import restore_backup
from study.store import tables as t
from study.store.store import StudyStore, study_names
from tests.support.epochs import commit, weights
from tests.support.shipped import manifest_of
from tests.support.studies import synthetic_study

HEAD = {"champion": 2, "previous": 1, "generation": 5}


def bucket_of_our_own() -> str:
    name = f"t{secrets.token_hex(8)}"
    storage.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def source(service_environment: Services, tmp_path: Path) -> tuple[str, str]:
    """(database, bucket) of a stack with a running study, checkpoints, and a model with two versions and a HEAD."""
    bucket = bucket_of_our_own()
    folder = tmp_path / "source"
    folder.mkdir()
    store = synthetic_study(folder, trials=24)
    token = store.load().token
    for trial in store.trials():
        if trial.latest:
            place = f"s3://{bucket}/studies/{store.load().slug}/trials/{trial.number}/a000001"
            kept = {role: weights(put(f"{place}/{role}")) for role in ("latest", "best")}
            commit(store, token, trial.number, **kept)
    for version in (1, 2):
        prefix = model_prefix(bucket, "robust-clip", version)
        storage.put_json(f"{prefix}/open_clip_config.json", {"model_cfg": {}})
        shipped = {"uri": put(f"{prefix}/open_clip_model"), "sha256": "0" * 64, "bytes": 300}
        storage.put_json(f"{prefix}/manifest.json", manifest_of(version, weights=shipped).record())
    storage.put_json(f"{model_prefix(bucket, 'robust-clip')}/HEAD.json", HEAD)
    claim_look(bucket, "robust-clip", {"candidates": ["a"]}, hypotheses=1)
    put(f"s3://{bucket}/teacher/key")
    return store.url, bucket


def put(base: str) -> str:
    uri = f"{base}.safetensors"
    storage.put_bytes(uri, secrets.token_bytes(300))
    return uri


def content(bucket: str) -> dict[str, bytes]:
    """key -> bytes, of studies and models."""
    return {
        each.uri.removeprefix(f"s3://{bucket}/"): (storage.get_bytes(each.uri) or (b"", ""))[0]
        for prefix in ("studies", "models")
        for each in storage.list_objects(f"s3://{bucket}/{prefix}")
    }


def rows(url: str, name: str, bucket: str) -> Any:
    """Everything of a study, with the bucket's name left out of addresses."""
    store = StudyStore(url, name)
    study, trials = store.load(), store.trials()
    own = [repr(study.spec), study.spec_hash, study.created_ms, repr(study.baseline), study.driven_seconds]
    text = json.dumps([own, [repr(trial) for trial in trials]])
    return text.replace(f"s3://{bucket}/", "s3://BUCKET/")


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_backup_into_an_empty_stack_gives_everything_back(source: tuple[str, str], tmp_path: Path, kind: str) -> None:
    url, bucket = source
    objects = str(tmp_path / "objects") if kind == "folder" else f"s3://{bucket}/backups/objects"
    place = str(tmp_path / "monday.tar") if kind == "folder" else f"s3://{bucket}/backups/monday.tar"
    said: list[str] = []
    made = write_backup(url, bucket, place, objects=objects, say=said.append)
    assert (made.studies, made.trials, made.champions) == (1, 24, 1)
    assert made.copied == made.objects == len(content(bucket))
    assert write_backup(url, bucket, place, objects=objects, say=said.append).copied == 0  # nothing has changed

    target, fresh = f"sqlite:///{tmp_path}/target.db", bucket_of_our_own()
    done = restore_backup(target, fresh, place, objects=None, tracking_uri=None, say=said.append)
    assert (done.studies, done.champions, done.lacking, done.anew) == (["synthetic"], {"robust-clip": HEAD}, 0, 0)
    assert done.unfinished == 2
    weights = read_manifest(fresh, "robust-clip", 2).weights.uri
    assert weights == f"{model_prefix(fresh, 'robust-clip', 2)}/open_clip_model.safetensors"
    assert read_head(fresh, "robust-clip")[0].champion == 2
    assert read_looks(fresh, "robust-clip") == read_looks(bucket, "robust-clip") != []
    before, after = content(bucket), content(fresh)
    assert before.keys() == after.keys()
    manifests = {key for key in before if key.endswith("manifest.json")}  # these name their bucket
    assert {key: before[key] for key in before.keys() - manifests} == {
        key: after[key] for key in after.keys() - manifests
    }
    assert rows(target, "synthetic", fresh) == rows(url, "synthetic", bucket)
    study = StudyStore(target, "synthetic").load()
    assert (study.state, study.lease_owner, study.desired) == ("paused", None, "run")
    assert storage.list_objects(f"s3://{fresh}/teacher") == []

    again = restore_backup(target, fresh, place, objects=None, tracking_uri=None, say=said.append)
    assert (again.there_already, again.objects) == (["synthetic"], 0)


def test_what_cannot_be_restored_is_said_before_anything_is_written(source: tuple[str, str], tmp_path: Path) -> None:
    url, bucket = source
    place, target, fresh = str(tmp_path / "b.tar"), f"sqlite:///{tmp_path}/target.db", bucket_of_our_own()
    write_backup(url, bucket, place, objects=None, say=lambda _: None)

    def restore(file: str = place, **changed: Any) -> Any:
        chosen = {"objects": None, "tracking_uri": None, "say": lambda _: None, **changed}
        return restore_backup(target, fresh, file, **chosen)

    with pytest.raises(StudyFailed, match=r"the champion's weights are not there.*--objects"):
        restore()
    assert study_names(target) == []
    assert content(fresh) == {}

    other = tmp_path / "other"
    other.mkdir()
    mine = synthetic_study(other, trials=1)
    with mine.engine.begin() as connection:  # a study of that name from another day
        connection.execute(sa.update(t.studies).values(created_ms=1))
    with pytest.raises(UserError, match="other studies of these names are in this database: synthetic"):
        restore_backup(mine.url, bucket, place, objects=None, tracking_uri=None, say=lambda _: None)
    storage.put_json(f"{model_prefix(fresh, 'robust-clip')}/HEAD.json", {**HEAD, "champion": 1})
    with pytest.raises(UserError, match="another champion reigns here"):
        restore()

    text = tmp_path / "study.json"
    text.write_text("{}")
    with pytest.raises(UserError, match="not a backup written by `agft backup`"):
        restore(str(text))
    with pytest.raises(UserError, match="no such file"):
        restore(str(tmp_path / "none.tar"))
    about = {"format": "agft-backup/1", "bucket": bucket, "studies": []}
    stolen = [{"uri": f"s3://{bucket}/studies/../../../etc/passwd", "bytes": 1}]
    wicked = tmp_path / "wicked.tar"
    with tarfile.open(wicked, "w") as tar:
        for name, value in (("backup.json", about), ("objects.json", stolen)):
            entry = tarfile.TarInfo(name)
            data = json.dumps(value).encode()
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(UserError, match="which no study and no model has"):
        restore(str(wicked), objects=str(tmp_path))


def test_a_backup_is_not_put_into_what_it_backs_up(source: tuple[str, str], tmp_path: Path) -> None:
    url, bucket = source
    for place, objects in ((f"s3://{bucket}/studies/b.tar", None), (f"s3://{bucket}/", None),
                           (str(tmp_path / "none" / "b.tar"), None), (str(tmp_path / "b.tar"), f"s3://{bucket}"),
                           (str(tmp_path / "b.tar"), f"s3://{bucket}/models/x")):  # fmt: skip
        with pytest.raises(UserError, match=r"inside what is being|expected the address of a file|no such folder"):
            write_backup(url, bucket, place, objects=objects, say=lambda _: None)
    assert not (tmp_path / "b.tar").exists()


ABOUT = {"format": "agft-backup/1", "bucket": "b", "studies": []}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"backup.json": {**ABOUT, "studies": ["x"]}}, r"it lacks studies/x\.json"),
        ({"backup.json": ABOUT}, r"it lacks objects\.json"),
        ({"backup.json": ABOUT, "objects.json": [{"bytes": 1}]}, "it lacks uri"),
        ({"backup.json": ["a list"]}, "not whole"),
        ({"backup.json": {**ABOUT, "studies": ["x"]}, "studies/x.json": ["a list"]}, "not whole"),
        ({"backup.json": ABOUT, "models/m/HEAD.json": {}, "objects.json": []}, "it lacks champion"),
    ],
)
def test_a_backup_with_something_missing_is_one_message(tmp_path: Path, members: dict[str, Any], said: str) -> None:
    place = tmp_path / "b.tar"
    with tarfile.open(place, "w") as tar:
        for name, value in members.items():
            data = json.dumps(value).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    files = [place]
    if said == "it lacks uri":  # of the whole ones, one that was cut
        files.append(tmp_path / "cut.tar")
        files[1].write_bytes(place.read_bytes()[:700])
    for file in files:
        with pytest.raises(UserError, match=said if file is place else "not whole"):
            restore_backup(f"sqlite:///{tmp_path}/t.db", "b", str(file), objects=None, tracking_uri=None, say=print)
