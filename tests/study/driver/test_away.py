"""Who waits for a service that is away, how long, and what is said of it."""

from __future__ import annotations

import asyncio
import errno
from functools import partial

import pytest

from infra.errors import Away, Missing
from study.driver.admission import whole_nodes
from study.driver.away import Outage, Patience
from study.driver.board import Board
from trainers.errors import Interrupted


def patience(board: Board, seconds: float = 60.0) -> Patience:
    return Patience(lambda reason: asyncio.run(board.wait(4, reason)), seconds)


def steps(*outcomes: BaseException | str) -> partial[str]:
    """A step that does each of these in turn."""
    left = list(outcomes)

    def step(word: str) -> str:
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return f"{word} {outcome}"

    return partial(step, "is")


def test_a_step_is_repeated_until_the_store_or_the_disk_is_there_again() -> None:
    board = Board()
    seen: list[dict[int, str]] = []

    def tell(reason: str) -> str:
        word = asyncio.run(board.wait(4, reason))
        seen.append(dict(board.waiting))
        return word

    found = Patience(tell, 60.0)(steps(Away("S3 is full"), OSError(errno.ENOSPC, "no space left"), "kept"))
    assert found == "is kept"
    assert seen == [{4: "S3 is full"}, {4: "[Errno 28] no space left"}, {}]


def test_what_is_no_outage_is_raised_at_once() -> None:
    for error in (Missing("s3://b/k: no such object"), FileNotFoundError("x"), ValueError("y")):
        with pytest.raises(type(error)):
            patience(Board())(steps(error))


@pytest.mark.parametrize("told", ["pause", "drop"])
def test_a_trial_that_waits_leaves_when_it_is_told_to(told: str) -> None:
    board = Board()
    asyncio.run(board.drop(4) if told == "drop" else board.tell_everybody(told))
    with pytest.raises(Interrupted, match="S3 is full"):
        patience(board)(steps(Away("S3 is full")))


def test_a_process_that_arrives_waits_no_more() -> None:
    board = Board()
    asyncio.run(board.wait(4, "S3 is full"))
    asyncio.run(board.remark("trial   4  a damaged checkpoint"))
    assert asyncio.run(board.news()) == ({4: "S3 is full"}, ["trial   4  a damaged checkpoint"], {}, set())
    asyncio.run(board.arrive(4, {"role": "worker"}))
    assert asyncio.run(board.news()) == ({}, [], {}, set())


def test_what_a_driver_says_of_an_outage_and_when_it_is_over() -> None:
    outage = Outage(patience=900.0)
    assert outage.hear("", {3: "its node is cut off"}, {3, 4}, 0.0) == ["trial   3  waits for S3: its node is cut off"]
    assert outage.hear("", {3: "its node is cut off"}, {3, 4}, 5.0) == []
    assert not outage.reason, "one of two is not the study"
    [line] = outage.hear("", {3: "full", 4: "full"}, {3, 4}, 10.0)
    assert line == "waiting for S3, nothing is proposed, and the study pauses after 15 min: full"
    assert outage.hear("refused", {}, {3, 4}, 909.0) == []
    assert outage.over(909.0) == ""
    assert outage.over(910.0) == "S3 has been away for 15 min: refused"
    assert outage.hear("", {7: "of another driver"}, {3, 4}, 1000.0) == ["S3 answers again, after 16 min"]
    assert outage.over(5000.0) == ""


@pytest.mark.parametrize(
    ("part", "workers", "nodes", "whole"),
    [
        ({"CPU": 1.0}, 1, [{"CPU": 8.0}], {"CPU": 8.0}),
        ({"CPU": 1.0, "GPU": 1.0}, 1, [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0}], {"CPU": 8.0, "GPU": 4.0}),
        ({"CPU": 2.0}, 4, [{"CPU": 8.0}, {"CPU": 8.0}], {"CPU": 8.0}),
        ({"CPU": 8.0}, 2, [{"CPU": 8.0}, {"CPU": 8.0}], {"CPU": 16.0}),
        ({"CPU": 3.0}, 4, [{"CPU": 8.0}, {"CPU": 6.0}], {"CPU": 12.0}),  # it can have no two nodes to itself
        ({"CPU": 9.0}, 1, [{"CPU": 8.0}], {"CPU": 9.0}),
    ],
)
def test_a_trial_that_is_to_be_alone_leaves_no_room_beside_it(part, workers, nodes, whole) -> None:
    found = whole_nodes(part, workers, nodes)
    assert found == whole
