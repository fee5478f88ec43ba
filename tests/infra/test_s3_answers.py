"""What S3, or who answers in its place, may say, and what we make of it: later it may do what was asked, or never."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from infra import s3, storage
from infra.errors import Away, ChecksumMismatch, NoBucket, ServiceError
from study.artifacts.sources import fetch_data, fetch_weights
from tests.support.services.small_s3 import Answer, Asked, SmallS3, refused, small_s3
from trainers.errors import MissingWeights


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    """Every request to it is made once."""
    with small_s3(monkeypatch) as store, s3.one_attempt():
        yield store


def put() -> str:
    return storage.put_bytes("s3://lab/key", b"hello")


def page(status: int, text: str) -> Answer:
    """As a proxy has it."""
    return Answer(status, f"<html><body><h1>{text}</h1></body></html>".encode(), {"Content-Type": "text/html"})


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "XMinioAdminBucketQuotaExceeded"), (403, "QuotaExceeded"), (400, "IncompleteBody"), (400, "BadDigest"),
        (400, "XAmzContentSHA256Mismatch"), (499, "ClientDisconnected"), (425, "TooEarly"), (423, "Locked"),
        (408, "RequestTimeout"), (400, "KMS.DisabledException"), (400, "KMS.ThrottlingException"),
        (400, "ExpiredTokenException"), (400, "IDPCommunicationError"), (403, "ForbiddenException"),
        (403, "UserSuspended"), (403, ""), (404, "NoSuchBucket"),
    ],
)  # fmt: skip
def test_what_may_be_over_later_is_away(store: SmallS3, status: int, code: str) -> None:
    store.answers = lambda _: refused(status, code)
    with pytest.raises(Away):
        put()
    store.answers = lambda _: None
    put()


@pytest.mark.parametrize(("status", "code"), [(413, "EntityTooLarge"), (400, "EntityTooLarge"), (413, "")])
def test_what_is_too_large_is_so_later_as_well_and_it_is_said_whose_limit_that_is(
    store: SmallS3, status: int, code: str
) -> None:
    store.answers = lambda _: refused(status, code) if code else page(status, "Request Entity Too Large")
    with pytest.raises(ServiceError, match="raise the limit of the store, or of the proxy") as caught:
        put()
    assert not s3.is_away(caught.value)


@pytest.mark.parametrize("status", [403, 404, 407, 502, 511])
def test_a_page_in_place_of_an_answer_is_away_and_its_status_is_named(store: SmallS3, status: int) -> None:
    store.answers = lambda _: page(status, "no")
    with pytest.raises(Away, match=str(status)) as caught:
        put()
    assert "(: " not in str(caught.value)


def test_bytes_that_are_not_what_was_said_of_them_are_no_outage(store: SmallS3) -> None:
    store.answers = lambda _: refused(400, "BadDigest")
    with pytest.raises(ChecksumMismatch):
        storage._put("s3://lab/key", b"hello", "0" * 64, if_absent=False, if_match=None)


def test_who_finds_keys_and_cannot_have_them_now_waits(store: SmallS3) -> None:
    """Of a role: another service is asked for its keys."""
    said = r"keys for S3 cannot be had \(AssumeRole: RegionDisabled: off"
    with pytest.raises(Away, match=said), s3.s3_errors("s3://lab"):
        raise ClientError({"Error": {"Code": "RegionDisabled", "Message": "off"}}, "AssumeRole")


def test_without_its_bucket_nothing_is_missing(store: SmallS3, tmp_path: Path) -> None:
    """A study's data and weights are back when the bucket is; a model of another bucket is the user's mistake."""

    def answers(asked: Asked) -> Answer | None:
        return Answer(404) if asked.method == "HEAD" else refused(404, "NoSuchBucket")

    store.answers = answers
    with pytest.raises(NoBucket, match="no such bucket 'lab'"):
        fetch_data("s3://lab/set/manifest.json", tmp_path / "file", None)
    with pytest.raises(NoBucket):
        fetch_weights("s3://lab/weights.bin")
    with pytest.raises(MissingWeights, match="no such bucket 'typo'"):
        fetch_weights("s3://typo/weights.bin")
    store.answers = lambda _: Answer(404, b"404 page not found", {"Content-Type": "text/plain"})
    with pytest.raises(Away, match="another server answers"):
        fetch_data("s3://lab/set/manifest.json", tmp_path / "file", None)
    store.answers = lambda _: None
    assert not fetch_data("s3://lab/set/manifest.json", tmp_path / "file", None)


CALLS: dict[str, Callable[[], object]] = {
    "put": put,
    "head": lambda: storage.head("s3://lab/key"),
    "get": lambda: storage.get_bytes("s3://lab/key"),
    "list": lambda: storage.list_objects("s3://lab/below"),
    "delete": lambda: storage.delete_prefix("s3://lab/below"),
    "probe": lambda: s3.probe("lab"),
}


@pytest.mark.parametrize("answer", [page(200, "Log in"), Answer(200)], ids=["page", "nothing"])
@pytest.mark.parametrize("call", CALLS)
def test_who_answers_everything_kindly_is_no_s3(store: SmallS3, call: str, answer: Answer) -> None:
    store.answers = lambda _: answer
    with pytest.raises(Away, match="answers, but not as S3 does"):
        CALLS[call]()


def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "REREAD_SECONDS", (0.0, 0.0))
    with small_s3(monkeypatch) as store:
        put()
        store.times(3, Answer(200, b"hello", {"ETag": '"e"'}, cut=2), lambda asked: asked.method == "GET")
        assert storage.get_bytes("s3://lab/key") is not None
        store.times(3, Answer(200, b"hello", {"ETag": '"e"'}, cut=2), lambda asked: asked.method == "GET")
        assert storage.hash_object("s3://lab/key") == hashlib.sha256(b"hello").hexdigest()
        store.times(100, Answer(200, b"hello", {"ETag": '"e"'}, cut=2), lambda asked: asked.method == "GET")
        asked = len(store.asked)
        with pytest.raises(Away), s3.one_attempt():
            storage.get_bytes("s3://lab/key")
        assert len(store.asked) == asked + 1


def test_an_object_that_is_replaced_while_it_is_read_is_read_later(store: SmallS3, tmp_path: Path) -> None:
    large = bytes(20 << 20)
    storage.put_bytes("s3://lab/key", large)

    def answers(asked: Asked) -> Answer | None:
        if "range" not in asked.headers:
            return None
        if not asked.headers["range"].startswith("bytes=0-"):
            return refused(412, "PreconditionFailed")
        first = (8 << 20) - 1
        return Answer(206, large[: first + 1], {"ETag": '"e"', "Content-Range": f"bytes 0-{first}/{len(large)}"})

    store.answers = answers
    with pytest.raises(Away):
        storage.get_file("s3://lab/key", tmp_path / "file")


@pytest.mark.parametrize(
    ("status", "code"), [(400, "MissingContentMD5"), (405, "MethodNotAllowed"), (501, "NotImplemented")]
)
def test_a_store_that_cannot_delete_many_at_once_deletes_one_by_one(store: SmallS3, status: int, code: str) -> None:
    for name in ("one", "two"):
        storage.put_bytes(f"s3://lab/below/{name}", b"hello")
    store.answers = lambda asked: refused(status, code) if asked.method == "POST" else None
    assert storage.delete_prefix("s3://lab/below") == 2
    assert not store.objects
