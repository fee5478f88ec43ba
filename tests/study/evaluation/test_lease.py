"""The lease of an evaluation in S3 where answers are lost, deletions are denied, or conditions are refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import pytest

from infra import s3, storage
from study.errors import StudyFailed
from study.evaluation import place
from study.evaluation.place import LEASE, Prefix, alone_in
from tests.support.services.small_s3 import Answer, Asked, SmallS3, refused, small_s3

HERE = Prefix("s3://lab/here")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    """Every request to it is made once, from any thread."""
    monkeypatch.setattr(place, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(s3, "_attempts", ContextVar("attempts", default=1))
    with small_s3(monkeypatch) as store:
        yield store


def beats(asked: Asked) -> bool:
    return asked.method == "PUT" and "if-match" in asked.headers


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_beat_whose_answer_is_lost_is_still_one_of_ours(store: SmallS3) -> None:
    lost: list[Asked] = []

    def answers(asked: Asked) -> Answer | None:
        if not beats(asked) or len(lost) == 2:
            return None
        lost.append(asked)
        store._put(asked)
        return refused(504, "GatewayTimeout")

    store.answers = answers
    with alone_in(HERE) as check:
        until(lambda: len(lost) == 2)
        after = len(store.asked)
        until(lambda: sum(beats(asked) for asked in store.asked[after:]) > 3)
        check()
        storage.put_bytes(HERE.at(LEASE), b"{}")
        until(lambda: lost_by(check))


def lost_by(check: Callable[[], None]) -> bool:
    try:
        check()
    except StudyFailed:
        return True
    return False


@pytest.mark.parametrize("answer", [refused(403, "AccessDenied"), refused(503, "SlowDown")])
def test_a_lease_that_cannot_be_deleted_hides_nothing(store: SmallS3, answer: Answer) -> None:
    store.answers = lambda asked: answer if asked.method == "DELETE" else None
    with alone_in(HERE):
        pass
    store.objects.clear()
    with pytest.raises(ZeroDivisionError), alone_in(HERE):
        raise ZeroDivisionError


def test_a_store_that_refuses_conditions_holds_evaluations(store: SmallS3) -> None:
    def answers(asked: Asked) -> Answer | None:
        conditional = any(name in asked.headers for name in ("if-match", "if-none-match"))
        return refused(501, "NotImplemented") if conditional else None

    store.answers = answers
    with alone_in(HERE) as check:
        until(lambda: sum(beats(asked) for asked in store.asked) > 2)
        check()
