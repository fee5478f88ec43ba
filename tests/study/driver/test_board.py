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


def test_without_a_verdict_a_trial_at_a_rung_has_no_answer_and_any_other_goes_on():
    async def story() -> tuple[Any, Any, float]:
        start = time.monotonic()
        at_rung, board = await Board().answer_at_rung(0, 1, 0.2), Board()
        return at_rung, await board.answer(0, 1, 0.0), time.monotonic() - start

    at_rung, elsewhere, seconds = run(story())
    assert at_rung is None
    assert elsewhere.decision == "continue"
    assert seconds >= 0.2


def test_a_stopped_trial_that_is_trained_to_its_end_is_stopped_no_more():
    async def story() -> Any:
        board = Board()
        await board.publish(0, 2, "stop")
        await board.forget(0)
        return (await board.answer(0, 3, 0.0)).decision

    assert run(story()) == "continue"


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

    assert run(story()) == ["stop", None, None]


def test_everybody_is_told_but_a_stop_of_ones_own_comes_first():
    async def story() -> list[str]:
        board = Board()
        await board.publish(0, 1, "stop")
        await board.tell_everybody("pause")
        return [await board.verdict(number, 1, 0.0) for number in (0, 1)]

    assert run(story()) == ["stop", "pause"]


def test_two_drivers_of_one_study_have_two_boards():
    assert board_name("demo", 1) != board_name("demo", 2)
