"""Copies of a stack's objects, where storage fails in the middle or is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import s3, storage
from infra.errors import Away, NoBucket
from study.errors import UserError
from study.operations.backup import copy_back, copy_out
from tests.support.services.small_s3 import SmallS3, refused, small_s3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    """Every request to it is made once. It has six objects of a study."""
    with small_s3(monkeypatch) as store, s3.one_attempt():
        for number in range(6):
            storage.put_bytes(f"s3://lab/studies/one/{number}", b"content")
        yield store


def fail_at(store: SmallS3, name: str) -> None:
    store.answers = lambda asked: (
        refused(503, "SlowDown") if asked.path.endswith(name) and asked.method != "PUT" else None
    )


@pytest.mark.parametrize("in_s3", [True, False])
def test_who_copies_again_after_an_outage_moves_only_the_rest(store: SmallS3, tmp_path: Path, in_s3: bool) -> None:
    place = "s3://lab/backups/objects" if in_s3 else str(tmp_path / "objects")
    fail_at(store, "/studies/one/4")
    with pytest.raises(Away):
        copy_out("lab", place, print)
    store.answers = lambda _: None
    assert copy_out("lab", place, print)[0] == 2


def test_from_a_place_that_is_not_there_nothing_is_copied_back_and_that_is_said(store: SmallS3, tmp_path: Path) -> None:
    store.answers = lambda asked: refused(404, "NoSuchBucket") if asked.path.startswith("/nowhere") else None
    with pytest.raises(NoBucket):
        copy_back("s3://nowhere/objects", "lab", ["studies/one/9"], print)
    with pytest.raises(NoBucket):
        copy_back("s3://lab/objects", "nowhere", ["studies/one/9"], print)
    with pytest.raises(UserError, match="there is no such folder"):
        copy_back(str(tmp_path / "none"), "lab", ["studies/one/9"], print)
    assert copy_back(str(tmp_path), "lab", ["studies/one/9"], print) == 0
