"""ASHA and the ranking of trials, on hand-made records."""

from __future__ import annotations

import pytest

from study.config import SchedulerConfig
from study.results import best_trial, ranked, trial_table
from study.schedule import asha_verdict, rungs, score
from study.store import TrialRow
from trainers.config import Goal

GOAL = Goal(metric="robust_accuracy", at_least={"clean_accuracy": 0.5})


def record(epoch: int, robust: float, clean: float = 0.6) -> dict:
    return {
        "epoch": epoch,
        "best_epoch": epoch,
        "best_robust_accuracy": robust,
        "best_clean_accuracy": clean,
        "best_feasible": clean >= 0.5,
    }


def trial(number: int, *robust: float, clean: float = 0.6, state: str = "running") -> TrialRow:
    epochs = tuple(record(epoch, value, clean) for epoch, value in enumerate(robust, start=1))
    return TrialRow(number=number, state=state, params={}, config={}, started_ms=0, epochs=epochs)


def verdict(own: TrialRow, others: list[TrialRow], *, rung: int = 1, factor: int = 3) -> str:
    return asha_verdict(own, others, rung=rung, metric="robust_accuracy", at_least=GOAL.at_least, factor=factor)[0]


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "expected"),
    [(0.25, 3, 4, (1, 3)), (0.25, 2, 8, (2, 4)), (0.1, 3, 10, (1, 3, 9)), (1.0, 3, 5, ()), (0.5, 4, 1, ())],
)
def test_rungs_grow_by_the_factor_and_stay_below_the_last_epoch(grace, factor, epochs, expected):
    assert rungs(SchedulerConfig(grace_fraction=grace, reduction_factor=factor), epochs) == expected


def test_without_a_scheduler_there_are_no_rungs():
    assert rungs(SchedulerConfig(name="none"), 10) == ()


def test_the_first_trials_at_a_rung_go_on():
    assert verdict(trial(0, 0.1), []) == "continue"
    assert verdict(trial(1, 0.0), [trial(0, 0.9)]) == "continue"


def test_one_in_three_goes_on():
    others = [trial(0, 0.3), trial(1, 0.2)]
    assert verdict(trial(2, 0.4), others) == "continue"
    assert verdict(trial(2, 0.25), others) == "stop"


def test_a_tie_with_the_cutoff_goes_on():
    assert verdict(trial(2, 0.3), [trial(0, 0.3), trial(1, 0.2)]) == "continue"


def test_trials_that_never_reached_the_rung_do_not_count():
    others = [trial(0, 0.3), trial(1, 0.2), trial(3)]
    assert verdict(trial(2, 0.1, 0.1), others, rung=2) == "continue"


def test_a_trial_below_its_floor_ranks_under_every_feasible_one():
    others = [trial(0, 0.1), trial(1, 0.05)]
    assert verdict(trial(2, 0.9, clean=0.4), others) == "stop"
    assert score(record(1, 0.9, clean=0.4), "robust_accuracy", {"clean_accuracy": 0.5}) == pytest.approx(-0.1)


def test_the_best_trial_is_full_length_and_feasible():
    trials = [
        trial(0, 0.2, state="complete"),
        trial(1, 0.9, state="pruned"),
        trial(2, 0.8, clean=0.4, state="complete"),
        trial(3, 0.3, state="complete"),
        trial(4, 0.95, state="failed"),
    ]
    assert [row.number for row in ranked(trials, GOAL)] == [3, 0, 2]
    assert best_trial(trials, GOAL).number == 3
    assert best_trial(trials[1:3], GOAL) is None
    assert [row["number"] for row in trial_table(trials, GOAL)] == [3, 0, 2, 1, 4]


def test_a_tie_goes_to_the_earlier_trial():
    assert best_trial([trial(1, 0.2, state="complete"), trial(0, 0.2, state="complete")], GOAL).number == 0
