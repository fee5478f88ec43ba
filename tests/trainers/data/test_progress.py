"""Lines that say how far a long piece of work is."""

from __future__ import annotations

import time

import pytest

from trainers.data.progress import Progress, bytes_done


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_it_says_how_fast_and_how_long_without_what_was_ready_and_without_the_start(clock):
    said: list[str] = []
    progress = Progress("dtd", 1000, said.append)
    for seconds, done in ((3, 200), (20, 250), (26, 550), (28, 600), (32, 850)):
        clock[0] = 100 + seconds
        progress(done, 200)
    assert said == [
        "dtd: 550 of 1,000 images, 50 a second, about 9 s left",
        "dtd: 850 of 1,000 images, 50 a second, about 3 s left",
    ]


@pytest.mark.parametrize(("rate", "left"), [(10, "100 s"), (1, "17 min"), (0.1, "2.8 h")])
def test_long_times_are_in_minutes_or_hours(rate, left, clock):
    said: list[str] = []
    progress = Progress("x", 1000 + round(10 * rate) + 1, said.append)
    progress(1)
    clock[0] += 10
    progress(1 + round(10 * rate))
    assert said[0].endswith(f"about {left} left")


def test_bytes_of_which_nobody_says_how_many_come_have_no_end(clock):
    said: list[str] = []
    for total in (4_000_000_000, 0):
        progress = Progress("x.zip", total, said.append, bytes_done)
        progress(1)
        clock[0] += 10
        progress(1_000_000_001)
    assert said == [
        "x.zip: 1.00 of 4.00 GB, 100.0 MB a second, about 30 s left",
        "x.zip: 1.00 GB, 100.0 MB a second",
    ]
