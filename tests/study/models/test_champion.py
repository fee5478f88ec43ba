"""HEAD, its history and versions on real S3: moved one after the other, by one at a time, and never half."""

from __future__ import annotations

import threading

import pytest

from infra import storage
from infra.errors import ChecksumMismatch, Conflict, ServiceError
from study.errors import UserError
from study.models.head import (
    Head,
    Move,
    history,
    model_names,
    model_prefix,
    read_head,
    reserve_version,
    swap_head,
    versions,
)
from study.models.rollback import chosen_name, roll_back, taken_back
from study.models.ship import _put, _put_weights
from tests.support.services.small_s3 import refused, small_s3

MOVE = Move("promotion", "every gate is passed", {"promotion": "abc", "study": "one"})


@pytest.fixture
def name(service_environment, tmp_path) -> str:
    return f"model-{tmp_path.name[-40:].strip('-')}"


@pytest.fixture
def bucket(service_environment) -> str:
    return service_environment.bucket


def records(bucket: str, name: str) -> list[str]:
    return [each.uri.rpartition("/")[2] for each in storage.list_objects(f"{model_prefix(bucket, name)}/generations")]


def test_every_move_names_the_one_before_it_and_says_who_and_why(bucket, name):
    assert read_head(bucket, name) == (Head(), None)
    assert history(bucket, name) == []
    for champion in (1, 2, 1):
        head, etag = read_head(bucket, name)
        swap_head(bucket, name, champion, head, etag, MOVE)
    head, _ = read_head(bucket, name)
    assert (head.champion, head.previous, head.generation) == (1, 2, 3)
    moves = history(bucket, name)
    assert [(m.generation, m.champion, m.previous) for m in moves] == [(3, 1, 2), (2, 2, 1), (1, 1, None)]
    assert [m.before for m in moves] == [moves[1].name, moves[2].name, None]
    assert all("@" in m.who and m.why == MOVE.why and m.facts == MOVE.facts for m in moves)
    assert name in model_names(bucket)


def test_of_two_who_saw_the_same_head_one_moves_it_and_the_other_leaves_nothing(bucket, name):
    swap_head(bucket, name, 1, Head(), None, MOVE)
    head, etag = read_head(bucket, name)
    start, outcomes = threading.Barrier(4), []

    def move(champion: int) -> None:
        start.wait()
        try:
            swap_head(bucket, name, champion, head, etag, MOVE)
            outcomes.append(champion)
        except Conflict:
            outcomes.append(None)

    threads = [threading.Thread(target=move, args=(champion,)) for champion in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [champion for champion in outcomes if champion is not None]
    assert len(outcomes) == 4
    assert read_head(bucket, name)[0].champion == winner
    assert [m.champion for m in history(bucket, name)] == [winner, 1]
    assert len(records(bucket, name)) == 2, "who lost took its record back"


def test_the_first_champion_is_a_race_too(bucket, name):
    swap_head(bucket, name, 1, Head(), None, MOVE)
    with pytest.raises(Conflict):
        swap_head(bucket, name, 2, Head(), None, MOVE)
    assert [m.champion for m in history(bucket, name)] == [1]


def test_a_record_that_head_does_not_reach_is_not_history_and_one_that_is_lost_is_noticed(bucket, name):
    head = swap_head(bucket, name, 1, Head(), None, MOVE)
    base = f"{model_prefix(bucket, name)}/generations"
    storage.put_json(f"{base}/0002-deadbeef.json", {"who": "a move that was killed"})
    assert [m.generation for m in history(bucket, name)] == [1]
    storage.delete(f"{base}/{head.record}.json")
    with pytest.raises(ServiceError, match="the record of a move of HEAD is missing"):
        history(bucket, name)


def test_a_head_from_before_moves_were_recorded_is_moved_on_from(bucket, name):
    storage.put_json(
        f"{model_prefix(bucket, name)}/HEAD.json", {"champion": 4, "previous": 3, "generation": 7}, if_absent=True
    )
    head, etag = read_head(bucket, name)
    swap_head(bucket, name, 5, head, etag, MOVE)
    assert [(m.generation, m.champion, m.previous, m.before) for m in history(bucket, name)] == [(8, 5, 4, None)]


def test_versions_are_reserved_once_each(bucket, name):
    start, found = threading.Barrier(3), []

    def reserve() -> None:
        start.wait()
        found.append(reserve_version(bucket, name, {"study": "x"}))

    threads = [threading.Thread(target=reserve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2, 3]
    assert versions(bucket, name) == {number: {"reserved.json"} for number in (1, 2, 3)}


def test_a_shipped_file_is_read_back_and_never_replaced(prefix, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"the right bytes")
    digest = storage.hash_file(weights)
    assert _put_weights(weights, f"{prefix}/w", digest).sha256 == digest
    assert _put_weights(weights, f"{prefix}/w", digest).sha256 == digest, "again, after a kill"
    storage.put_bytes(f"{prefix}/other", b"somebody else's")
    with pytest.raises(ChecksumMismatch):
        _put_weights(weights, f"{prefix}/other", digest)
    _put(f"{prefix}/card", b"one")
    with pytest.raises(ChecksumMismatch, match="is not what was written there"):
        _put(f"{prefix}/card", b"two")
    assert storage.get_bytes(f"{prefix}/card")[0] == b"one"


def test_what_was_rolled_back_from_is_known_until_it_is_the_champion_again(bucket, name):
    def move(champion: int, action: str, **facts: object) -> None:
        head, etag = read_head(bucket, name)
        swap_head(bucket, name, champion, head, etag, Move(action, "complaints", facts))

    move(1, "promotion", weights_sha256="a" * 64)
    move(2, "promotion", weights_sha256="b" * 64)
    move(1, "rollback", **{"from": 2, "from_sha256": "b" * 64})
    assert "generation 3 took it back on" in (taken_back(bucket, name, "b" * 64) or "")
    assert taken_back(bucket, name, "a" * 64) is None
    move(2, "promotion", weights_sha256="b" * 64)
    assert taken_back(bucket, name, "b" * 64) is None


def test_a_model_is_named_if_there_are_several_and_must_have_a_champion(bucket, name):
    swap_head(bucket, name, 1, Head(), None, MOVE)
    swap_head(bucket, f"{name}-b", 1, Head(), None, MOVE)
    assert chosen_name(bucket, name) == name
    with pytest.raises(UserError, match=r"NAME: which model\?"):
        chosen_name(bucket, None)
    with pytest.raises(UserError, match=f"did you mean '{name}-b'"):
        chosen_name(bucket, f"{name}-bb")


def test_there_is_no_way_back_from_a_first_champion_nor_to_a_version_that_is_not_complete(bucket, name):
    swap_head(bucket, name, 1, Head(), None, MOVE)
    with pytest.raises(UserError, match="version 1 is its first champion"):
        roll_back(bucket, name, to=None, reason="", tracking_uri="http://127.0.0.1:9")
    reserve_version(bucket, name, {"study": "x"})
    with pytest.raises(UserError, match=r"--to 1: .* has no complete version 1"):
        roll_back(bucket, name, to=1, reason="", tracking_uri="http://127.0.0.1:9")
    assert read_head(bucket, name)[0].generation == 1


def test_a_lost_race_is_one_also_where_its_record_cannot_be_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_s3(monkeypatch) as store:
        swap_head("lab", "robust", 1, Head(), None, Move("promotion", "first"))
        store.answers = lambda asked: refused(403, "AccessDenied") if asked.method == "DELETE" else None
        with pytest.raises(Conflict):
            swap_head("lab", "robust", 2, Head(), None, Move("promotion", "second"))
