"""The notice board's answers, without Ray: verdicts are waited for, a stop stays, everybody's word reaches all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from study.driver.board import Board, Order, board_name
from trainers.schema.records import Sign

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


def test_a_seat_takes_one_order_after_the_other_and_leaves_when_it_is_told_to():
    async def story() -> None:
        board = Board()
        taking = asyncio.create_task(board.take("seat", 0, "", False, 30.0))
        await board.place("seat", 1, 7, "train 7")
        assert await taking == Order(1, 7, "train 7")
        assert await board.take("seat", 1, "finished", False, 0.0) is None, "it has done that one"
        assert await board.listen(1, 0, 0, 0.0) == (board.born, [{"ending": "finished", "worn": False}])
        await board.place("seat", 2, 8, "train 8")
        assert await board.take("seat", 1, "finished", False, 0.0) == Order(2, 8, "train 8")
        assert await board.order_of("seat", 2) == Order(2, 8, "train 8"), "the other ranks take the same"
        await board.place("seat", 0)
        assert await board.take("seat", 2, "finished", False, 30.0) == Order(0)

    run(story())


def test_a_second_group_of_workers_takes_the_same_order_and_wears_the_seat():
    async def story() -> None:
        board = Board()
        await board.place("seat", 1, 7, "train 7")
        for _ in range(2):
            await board.sit("seat")
            assert await board.take("seat", 0, "", False, 0.0) == Order(1, 7, "train 7")
        await board.take("seat", 1, "finished", False, 0.0)
        assert await board.listen(1, 0, 0, 0.0) == (board.born, [{"ending": "finished", "worn": True}])
        assert await board.take("seat", 0, "", False, 0.0) is None, "it is not trained again by a third one"

    run(story())


def test_words_are_heard_once_and_in_turn_and_on_a_new_board_again():
    async def story() -> None:
        board = Board()
        await board.post(5, {"report": "of an attempt that is over"})
        await board.place("seat", 6, 7, "train 7")
        for text in ("epoch 1", "epoch 1", "epoch 2"):  # said twice, since no answer came
            await board.post(6, {"report": text})
        assert (await board.listen(6, board.born, 1, 0.0))[1] == [{"report": "epoch 2"}]
        assert (await board.listen(6, board.born - 1, 2, 0.0))[1] == [{"report": "epoch 1"}, {"report": "epoch 2"}]
        assert (await board.listen(5, board.born, 0, 0.0))[1] == []
        await board.end(6, "lost", True)
        await board.end(6, "finished", False)
        assert (await board.listen(6, board.born, 2, 0.0))[1] == [{"ending": "lost", "worn": True}]

    run(story())


def test_a_seats_placement_groups_are_known_after_its_processes_have_departed():
    async def play():
        board = Board()
        await board.place("seat", 1, 7)
        await board.arrive("seat", {"role": "driver", "group": "ab"})
        assert await board.depart(7)
        await board.arrive("seat", {"role": "driver", "group": "cd"})
        assert await board.held() == {"seat": ["ab", "cd"]}

    asyncio.run(play())


def test_a_seats_processes_depart_with_its_trial():
    async def story() -> None:
        board = Board()
        await board.place("seat", 1, 7, "train 7")
        await board.arrive(7, {"role": "worker"})
        await board.arrive("seat", {"role": "driver"})
        await board.arrive("other", {"role": "driver"})
        assert await board.depart(7) == [{"role": "worker"}, {"role": "driver"}]
        assert await board.depart(7) == []

    run(story())


def test_a_trial_inside_an_epoch_is_asked_to_leave_as_soon_as_the_study_pauses_or_it_is_taken_out():
    sign = Sign(stage="training", done=1, total=9, images_per_second=1.0)

    async def story(number: int) -> list[bool]:
        board = Board()
        await board.tell_everybody("stop")  # at the next report, so that the epoch counts
        before = await board.alive(3, sign, 0.05)
        asking = asyncio.create_task(board.alive(3, sign, 30.0))
        await asyncio.sleep(0)
        await (board.drop(3) if number else board.tell_everybody("pause"))
        return [before, await asking, await board.alive(4, sign, 0.0)]

    assert [run(story(number)) for number in (0, 1)] == [[False, True, True], [False, True, False]]
