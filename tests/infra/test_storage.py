"""Storage on the real embedded S3: bytes arrive whole or not at all, and of two writers one is told that it lost."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from infra import storage
from infra.errors import ChecksumMismatch, Conflict, Missing, ServiceError, UserError
from infra.services import Services


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(9_000_000))  # more than one of the store's 4 MB chunks
    return path


def test_a_file_comes_back_with_its_checksum(prefix: str, file: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    stored = storage.put_file(file, f"{prefix}/a/weights.bin")
    assert (stored.sha256, stored.size) == (digest, 9_000_000)
    assert storage.head(stored.uri) == stored
    back = storage.get_file(stored.uri, tmp_path / "new" / "back.bin", sha256=digest)
    assert back == stored
    assert (tmp_path / "new" / "back.bin").read_bytes() == file.read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["back.bin"]  # no partial file left


def test_a_wrong_checksum_is_refused_on_the_way_in_and_out(prefix: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ChecksumMismatch):
        storage.put_file(file, f"{prefix}/in", sha256="0" * 64)
    assert storage.head(f"{prefix}/in") is None
    storage.put_file(file, f"{prefix}/out")
    (tmp_path / "kept").write_text("older")
    with pytest.raises(ChecksumMismatch, match="expected 1111"):
        storage.get_file(f"{prefix}/out", tmp_path / "kept", sha256="1" * 64)
    assert (tmp_path / "kept").read_text() == "older"


def test_bytes_that_were_exchanged_in_storage_are_noticed(
    prefix: str, file: Path, tmp_path: Path, service_environment: Services
) -> None:
    stored = storage.put_file(file, f"{prefix}/weights")
    bucket, key = storage.split_uri(stored.uri)
    claim = {"sha256": stored.sha256 or ""}
    storage.client().put_object(Bucket=bucket, Key=key, Body=b"something else", Metadata=claim)
    with pytest.raises(ChecksumMismatch):
        storage.get_file(stored.uri, tmp_path / "back")
    with pytest.raises(ChecksumMismatch):
        storage.get_bytes(stored.uri)
    with pytest.raises(ChecksumMismatch):
        storage.copy(stored.uri, f"{prefix}/copy")
    assert storage.head(f"{prefix}/copy") is None


def test_only_the_first_writer_creates(prefix: str, file: Path) -> None:
    storage.put_file(file, f"{prefix}/once", if_absent=True)
    with pytest.raises(Conflict):
        storage.put_file(file, f"{prefix}/once", if_absent=True)
    storage.put_bytes(f"{prefix}/small", b"1", if_absent=True)
    with pytest.raises(Conflict):
        storage.put_bytes(f"{prefix}/small", b"1", if_absent=True)  # the same bytes are no excuse


def test_swaps_of_a_read_version_lose_no_update_in_a_race(prefix: str) -> None:
    uri, writers, rounds = f"{prefix}/HEAD.json", 6, 5
    storage.put_json(uri, {"count": 0}, if_absent=True)
    conflicts = []

    def add() -> None:
        done = 0
        while done < rounds:
            found = storage.get_json(uri)
            assert found is not None
            try:
                storage.put_json(uri, {"count": found[0]["count"] + 1}, if_match=found[1])
                done += 1
            except Conflict:
                conflicts.append(1)

    threads = [threading.Thread(target=add) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = storage.get_json(uri)
    assert found is not None
    assert found[0] == {"count": writers * rounds}
    assert conflicts  # there was a race to win


def test_a_race_to_create_has_one_winner(prefix: str) -> None:
    outcomes: list[bool] = []

    def create(number: int) -> None:
        try:
            storage.put_json(f"{prefix}/lease", {"owner": number}, if_absent=True)
            outcomes.append(True)
        except Conflict:
            outcomes.append(False)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == [False] * 7 + [True]


def test_a_swap_of_an_object_that_is_gone_is_a_conflict(prefix: str) -> None:
    etag = storage.put_bytes(f"{prefix}/x", b"1")
    storage.delete(f"{prefix}/x")
    with pytest.raises(Conflict):
        storage.put_bytes(f"{prefix}/x", b"2", if_match=etag)


def test_what_is_not_there_is_none_or_missing(prefix: str, tmp_path: Path) -> None:
    assert storage.head(f"{prefix}/none") is None
    assert storage.get_bytes(f"{prefix}/none") is None
    assert storage.get_json(f"{prefix}/none") is None
    assert storage.list_objects(prefix) == []
    assert storage.delete_prefix(prefix) == 0
    storage.delete(f"{prefix}/none")
    for call in (
        lambda: storage.get_file(f"{prefix}/none", tmp_path / "x"),
        lambda: storage.copy(f"{prefix}/none", f"{prefix}/copy"),
    ):
        with pytest.raises(Missing):
            call()


def test_listing_and_deleting_stay_below_the_prefix(prefix: str) -> None:
    for name in ("a/1", "a/b/2", "ab/3"):
        storage.put_bytes(f"{prefix}/{name}", name.encode())
    storage.client().put_object(Bucket=storage.split_uri(prefix)[0], Key=storage.split_uri(f"{prefix}/a/b/")[1])
    assert [entry.uri for entry in storage.list_objects(f"{prefix}/a")] == [f"{prefix}/a/1", f"{prefix}/a/b/2"]
    assert storage.delete_prefix(f"{prefix}/a") >= 2
    assert storage.list_objects(f"{prefix}/a") == []
    assert storage.get_bytes(f"{prefix}/ab/3") is not None
    with pytest.raises(UserError, match="whole bucket"):
        storage.delete_prefix(f"s3://{storage.split_uri(prefix)[0]}/")


def test_a_copy_is_the_same_bytes(prefix: str, file: Path) -> None:
    stored = storage.put_file(file, f"{prefix}/runs/best")
    copied = storage.copy(stored.uri, f"{prefix}/models/1/weights")
    assert (copied.sha256, copied.size) == (stored.sha256, stored.size)
    assert storage.head(copied.uri) == copied


def test_json_is_strict_and_stable(prefix: str) -> None:
    storage.put_json(f"{prefix}/x", {"b": 1, "a": 2})
    found = storage.get_bytes(f"{prefix}/x")
    assert found is not None
    assert list(json.loads(found[0])) == ["a", "b"]
    with pytest.raises(ValueError, match="JSON"):
        storage.put_json(f"{prefix}/x", float("nan"))
    storage.put_bytes(f"{prefix}/y", b"{not json")
    with pytest.raises(ServiceError, match="not JSON"):
        storage.get_json(f"{prefix}/y")


@pytest.mark.parametrize("uri", ["/local/path", "http://x/y", "s3://", "s3:/b/k", "gs://b/k"])
def test_only_s3_uris_are_addresses(uri: str) -> None:
    with pytest.raises(UserError, match="s3://bucket/key"):
        storage.split_uri(uri)


def test_refused_and_dead_storage_say_so(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ServiceError, match="refuses the credentials"):
        storage.put_bytes(f"{prefix}/x", b"x")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ServiceError, match="AWS_ACCESS_KEY_ID"):
        storage.put_bytes(f"{prefix}/x", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9 cannot be used"):
        storage.head(f"{prefix}/x")
