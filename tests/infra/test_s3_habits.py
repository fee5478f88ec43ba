"""Stores with habits of their own: what is an outage, what is refused, and what works all the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import s3, storage
from infra.checks.s3 import check_s3
from infra.errors import Away, ChecksumMismatch, Missing, ServiceError, UserError
from infra.services import Services, services_from_environment
from study.session import services_here
from tests.support.services.gate import Gate, gate


@pytest.fixture
def store(service_environment: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The real one behind an endpoint whose habits the test chooses; every request is made once."""
    with gate(service_environment.s3_endpoint) as endpoint, s3.one_attempt():
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.address)
        yield endpoint


@pytest.mark.parametrize("habit", ["busy", "expired", "full", "readonly", "redirect", "region"])
def test_a_store_that_fails_or_refuses_is_away_and_says_why(store: Gate, prefix: str, habit: str) -> None:
    storage.put_bytes(f"{prefix}/before", b"1")
    store.habit = habit
    with pytest.raises(Away) as caught:
        storage.put_bytes(f"{prefix}/x", b"x")
    assert store.address in str(caught.value)
    assert s3.is_away(caught.value)
    if habit in ("redirect", "region"):
        assert "AWS_REGION" in str(caught.value)
    store.habit = ""
    storage.put_bytes(f"{prefix}/x", b"x")
    s3.probe(storage.split_uri(prefix)[0])


def test_what_is_not_there_or_not_the_promised_bytes_is_no_outage(store: Gate, prefix: str, tmp_path: Path) -> None:
    with pytest.raises(Missing):
        storage.get_file(f"{prefix}/none", tmp_path / "x")
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(ChecksumMismatch) as caught:
        storage.put_file(tmp_path / "file", f"{prefix}/in", sha256="0" * 64)
    assert not s3.is_away(caught.value)


def test_a_disk_that_is_full_is_an_outage_and_a_file_that_is_missing_is_none() -> None:
    assert s3.is_away(OSError(errno.ENOSPC, "no space left on device"))
    assert not s3.is_away(FileNotFoundError(errno.ENOENT, "none"))


def test_a_store_that_takes_no_checksum_gets_the_bytes_and_they_are_compared(
    store: Gate, prefix: str, tmp_path: Path
) -> None:
    store.habit = "no-checksum"
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    stored = storage.put_file(tmp_path / "file", f"{prefix}/a/weights")
    assert store.refused, "it was asked with a checksum first"
    assert storage.head(stored.uri) == stored
    storage.copy(stored.uri, f"{prefix}/a/copy")
    storage.get_file(f"{prefix}/a/copy", tmp_path / "back", sha256=stored.sha256)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    with pytest.raises(ChecksumMismatch):
        storage.put_file(tmp_path / "file", f"{prefix}/a/other", sha256="0" * 64)
    assert storage.head(f"{prefix}/a/other") is None
    assert storage.delete_prefix(f"{prefix}/a") == 2
    assert storage.list_objects(f"{prefix}/a") == []


def test_keys_come_from_a_profile_and_a_file_that_is_written_again_is_read_again(
    store: Gate, prefix: str, tmp_path: Path, service_environment: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"

    def write(secret: str) -> None:
        file.write_text(
            f"[lab]\naws_access_key_id = {service_environment.access_key}\naws_secret_access_key = {secret}\n"
        )

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    write("of-last-week")
    with pytest.raises(Away, match="refuses the credentials"):
        storage.put_bytes(f"{prefix}/x", b"x")
    write(service_environment.secret_key)
    storage.put_bytes(f"{prefix}/x", b"x")

    found = services_from_environment(os.environ)
    assert found is not None
    assert found.access_key == ""
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"} & found.environment().keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"AWS_ENDPOINT_URL": "s3.lab:9000"}, r"^AWS_ENDPOINT_URL = 's3.lab:9000': .* http://s3.lab:9000$"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    prefix: str, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], message: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        storage.head(f"{prefix}/x")


def test_a_machine_without_keys_is_told_before_anything_is_started(
    service_environment: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert s3.lacking_keys() == []
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    with pytest.raises(UserError, match=r"no S3 credentials; set AWS_ACCESS_KEY_ID .* or AWS_PROFILE, or"):
        services_here(tmp_path / "home", print)
    assert not (tmp_path / "home").exists()
    [finding] = check_s3(service_environment.bucket)
    assert (finding.state, "AWS_PROFILE" in (finding.remedy or "")) == ("failed", True)


def test_what_runs_here_is_not_asked_through_a_proxy(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with s3.one_attempt():
        storage.put_bytes(f"{prefix}/x", b"x")


def test_half_a_key_pair_is_no_chain(service_environment: Services) -> None:
    half = {name: value for name, value in os.environ.items() if name != "AWS_SECRET_ACCESS_KEY"}
    with pytest.raises(UserError, match="missing: AWS_SECRET_ACCESS_KEY"):
        services_from_environment(half)
    assert issubclass(Away, ServiceError)
