"""The notice board's answers, without Ray: verdicts are waited for, a stop stays, everybody's word reaches all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from study.driver.board import Board, board_name

T = TypeVar("T")


def run(story: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(story)


def test_without_a_verdict_the_trial_goes_on_after_its_patience():
    async def story() -> tuple[str, float]:
        start = time.monotonic()
        return await Board().verdict(0, 1, 0.2), time.monotonic() - start

    word, seconds = run(story())
    assert word == "continue"
    assert seconds >= 0.2


def test_a_verdict_that_comes_while_the_trial_waits_is_heard():
    async def story() -> str:
        board = Board()
        asking = asyncio.create_task(board.verdict(3, 2, 30.0))
        await asyncio.sleep(0)
        await board.publish(3, 2, "stop")
        return await asking

    assert run(story()) == "stop"


def test_a_stop_that_was_missed_at_its_rung_is_obeyed_at_a_later_report():
    async def story() -> list[str]:
        board = Board()
        await board.publish(0, 1, "stop")
        await board.publish(1, 1, "continue")
        return [await board.verdict(0, 3, 0.0), await board.verdict(1, 3, 0.0), await board.verdict(0, 0, 0.0)]

    assert run(story()) == ["stop", "continue", "continue"]


def test_everybody_is_told_but_a_stop_of_ones_own_comes_first():
    async def story() -> list[str]:
        board = Board()
        await board.publish(0, 1, "stop")
        await board.tell_everybody("pause")
        return [await board.verdict(number, 1, 0.0) for number in (0, 1)]

    assert run(story()) == ["stop", "pause"]


def test_two_drivers_of_one_study_have_two_boards():
    assert board_name("demo", 1) != board_name("demo", 2)
