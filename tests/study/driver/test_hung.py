"""When a trial has been silent for too long, by the clock alone."""

from __future__ import annotations

import pytest

from study.driver.board import FIRST_LIMIT_SECONDS, FLOOR_SECONDS, Silence


def test_nothing_is_overdue_before_the_pace_is_known_but_for_an_hour():
    silence = Silence()
    silence.start(0, 100.0)
    assert silence.overdue(100.0 + FIRST_LIMIT_SECONDS) == []
    assert silence.overdue(101.0 + FIRST_LIMIT_SECONDS) == [0]


def test_the_longest_wait_of_the_study_sets_the_limit():
    silence = Silence()
    for number in (0, 1):
        silence.start(number, 0.0)
    silence.report(0, 70.0)
    assert silence.overdue(209.0) == []
    assert silence.overdue(211.0) == [1], "it has said nothing for three times 70 s; trial 0 only for 141 s"


def test_short_epochs_do_not_make_it_nervous():
    silence = Silence()
    silence.start(0, 0.0)
    silence.report(0, 1.0)
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
