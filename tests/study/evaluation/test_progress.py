"""How long an evaluation still takes, as its lines say."""

from __future__ import annotations

import pytest

from study.evaluation.work import Said


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ((30, 36, 42, 48), ["1 of 4 sets", "2 of 4 sets, about 12 s left", "3 of 4 sets, about 6 s left"]),
        ((120, 240, 360, 480), ["1 of 4 sets, about 6 min left", "2 of 4 sets, about 4 min left",
                                "3 of 4 sets, about 2 min left"]),
    ],
    ids=["the first waited for workers", "all are long"],
)  # fmt: skip
def test_what_waited_for_workers_to_start_makes_no_rate(
    seconds: tuple[int, ...], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = [1000.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Said(lines.append, "hashing", "sets")
    progress.begin(4, 4.0)
    for each in seconds:
        clock[0] = 1000.0 + each
        progress.advance(1.0, "a set")
    assert lines == [f"hashing: {each}" for each in told]
