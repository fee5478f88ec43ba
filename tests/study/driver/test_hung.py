"""When a trial has been silent for too long, by the clock alone."""

from __future__ import annotations

import pytest

from study.driver.silence import FIRST_LIMIT_SECONDS, FLOOR_SECONDS, Silence


def test_nothing_is_overdue_before_the_pace_is_known_but_for_an_hour():
    silence = Silence()
    silence.start(0, 100.0)
    assert silence.overdue(100.0 + FIRST_LIMIT_SECONDS) == []
    assert silence.overdue(101.0 + FIRST_LIMIT_SECONDS) == [0]


def test_the_longest_wait_of_the_study_sets_the_limit():
    silence = Silence()
    for number in (0, 1):
        silence.start(number, 0.0)
    silence.hear(0, 170.0)
    assert silence.overdue(509.0) == []
    assert silence.overdue(511.0) == [1], "it has said nothing for three times 170 s; trial 0 only for 341 s"


def test_signs_of_life_from_inside_an_epoch_keep_a_trial_alive_for_hours_and_then_limit_its_silence():
    silence = Silence()
    silence.start(0, 0.0)
    for second in range(40, 3 * 3600, 10):
        silence.hear(0, float(second))
        assert silence.overdue(second + 1.0) == []
    last = 3 * 3600 - 10
    assert silence.overdue(last + FLOOR_SECONDS - 1) == []
    assert silence.overdue(last + FLOOR_SECONDS + 1) == [0], "a hung rank is found in minutes, however long epochs are"


def test_a_word_of_a_trial_that_has_left_is_not_heard():
    silence = Silence()
    silence.hear(3, 50.0)
    assert silence.overdue(10_000.0) == []


def test_short_epochs_do_not_make_it_nervous():
    silence = Silence()
    silence.start(0, 0.0)
    silence.hear(0, 1.0)
    assert silence.limit(0) == FLOOR_SECONDS


def test_a_trial_that_was_killed_gets_twice_the_time():
    silence = Silence(fixed=10.0)
    silence.start(0, 0.0)
    assert silence.overdue(11.0) == [0]
    assert silence.overdue(12.0) == [], "its time begins anew"
    assert silence.overdue(30.0) == []
    assert silence.overdue(31.5) == [0]
    assert silence.limit(0) == pytest.approx(40.0)


def test_a_trial_that_left_is_not_missed():
    silence = Silence(fixed=1.0)
    silence.start(0, 0.0)
    silence.end(0)
    assert silence.overdue(100.0) == []
