"""A state that is damaged on the way, not in storage, is gone on from all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import storage
from infra.errors import Away
from study.artifacts.checkpoints import attempt_prefix, fetch_state, inherit, keep_file
from tests.support.services.small_s3 import Answer, Asked, SmallS3, small_s3
from trainers.errors import Interrupted
from trainers.schema.records import At

FIRST, SECOND = (attempt_prefix("lab", "one-1", 0, token) for token in (1, 2))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    monkeypatch.setattr(storage, "REREAD_SECONDS", (0.0, 0.0))
    with small_s3(monkeypatch) as store:
        yield store


@pytest.fixture
def kept(store: SmallS3, tmp_path: Path) -> bytes:
    """A state of epoch 1, kept by the first driver."""
    file = tmp_path / "file"
    file.write_bytes(b"a state of epoch 1")
    for role in ("best", "latest"):
        keep_file(FIRST, 1, file, role, At(1, 1), 1)
    return file.read_bytes()


def reading(place: str) -> object:
    return lambda asked: asked.method == "GET" and place in asked.path


def cut(content: bytes) -> Answer:
    """As a proxy may answer that has half of it."""
    return Answer(200, content[:5], {"ETag": '"e"'})


def test_a_state_that_is_cut_short_on_the_way_is_read_again(store: SmallS3, kept: bytes, tmp_path: Path) -> None:
    store.times(2, cut(kept), reading("latest-"))
    restored = fetch_state(FIRST, 1, tmp_path)
    assert restored is not None
    assert restored.state.read_bytes() == kept


def test_a_state_that_is_there_and_cannot_be_read_is_no_new_trial(store: SmallS3, kept: bytes, tmp_path: Path) -> None:
    store.times(100, cut(kept), reading("latest-"))
    with pytest.raises(Interrupted, match="no state can be read whole"):
        fetch_state(FIRST, 1, tmp_path)
    store.times(100, Answer(404), lambda asked: asked.method == "HEAD" and "latest-" in asked.path)
    with pytest.raises(Interrupted, match="no such object"):
        fetch_state(FIRST, 1, tmp_path)


def test_a_copy_that_is_read_back_badly_is_read_again(store: SmallS3, kept: bytes, tmp_path: Path) -> None:
    said: list[str] = []
    store.times(1, cut(kept), reading("a000002"))
    inherit("lab", "one-1", 0, 2, 1, {}, said.append)
    restored = fetch_state(SECOND, 1, tmp_path)
    assert said == []
    assert restored is not None
    assert restored.state.read_bytes() == kept


def test_a_listing_that_lags_is_waited_for(store: SmallS3, kept: bytes) -> None:
    def lags(asked: Asked) -> Answer | None:
        own = "list-type" in asked.query and "a000002" in asked.query["prefix"]
        return Answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>") if own else None

    store.answers = lags
    with pytest.raises(Away, match="listing lacks"):
        inherit("lab", "one-1", 0, 2, 1, {}, print)
    store.answers = lambda _: None
    inherit("lab", "one-1", 0, 2, 1, {}, print)


def test_of_what_the_group_before_left_in_the_same_place_only_what_is_whole_is_gone_on_from(
    store: SmallS3, kept: bytes, tmp_path: Path
) -> None:
    """Where the store ignores the conditions of claims."""
    inherit("lab", "one-1", 0, 2, 1, {}, print)
    [damaged] = [key for key in store.objects if "a000002" in key and "latest-" in key]
    store.objects[damaged] = (b"of something else", {})
    inherit("lab", "one-1", 0, 2, 1, {}, print)
    restored = fetch_state(SECOND, 1, tmp_path)
    assert restored is not None
    assert restored.state.read_bytes() == kept
