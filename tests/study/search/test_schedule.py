"""ASHA and the ranking of trials, on hand-made records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from study.results.ranking import best_trial, ranked, score, trial_table
from study.search.stopping import plateau, rungs, stagnation, to_finish
from study.search.stopping import verdict as verdict_of
from study.spec.config import BudgetConfig, SchedulerConfig
from study.store.rows import TrialRow
from tests.support.epochs import epoch_record
from trainers.schema.records import EpochRecord
from trainers.schema.training import Goal

GOAL = Goal(metric="robust_accuracy", at_least={"clean_accuracy": 0.5})


def record(epoch: int, robust: float, clean: float = 0.6) -> EpochRecord:
    return epoch_record(epoch, robust, clean, best_feasible=clean >= 0.5)


def trial(number: int, *robust: float, clean: float = 0.6, state: str = "running") -> TrialRow:
    epochs = tuple(record(epoch, value, clean) for epoch, value in enumerate(robust, start=1))
    return TrialRow(number=number, state=state, params={}, config={}, started_ms=0, epochs=epochs)


def verdict(own: TrialRow, others: list[TrialRow], *, rung: int = 1, factor: int = 3, least: int = 1) -> str:
    config = SchedulerConfig(reduction_factor=factor, min_trials=least)
    return verdict_of(config, own, others, epoch=rung, goal=GOAL)[0]


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


@pytest.mark.parametrize("name", ["asha", "median"])
def test_nobody_is_stopped_before_as_many_known_trials_as_wanted_reached_the_epoch(name):
    config = SchedulerConfig(name=name, min_trials=3)
    others = [trial(n, 0.5 + n / 10) for n in range(3)]
    few = (others[:2], [*others[:2], trial(7)])
    assert all(verdict_of(config, trial(9, 0.1), known, epoch=1, goal=GOAL)[0] == "continue" for known in few)
    assert verdict_of(config, trial(9, 0.1), others[:2], epoch=1, goal=GOAL)[1] == (
        "epoch 1: only 2 of 3 known trials to compare with"
    )
    assert verdict_of(config, trial(9, 0.1), others, epoch=1, goal=GOAL)[0] == "stop"


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
    assert score(record(1, 0.9, clean=0.4), GOAL) == pytest.approx(-0.1)


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


def test_the_median_rule_stops_whoever_is_below_the_median_of_four_others_at_the_same_epoch():
    config = SchedulerConfig(name="median", grace_fraction=0.5)
    assert rungs(config, 6) == (3, 4, 5)
    others = [trial(n, 0.0, value) for n, value in enumerate([0.1, 0.2, 0.4, 0.5])]  # median 0.3

    def says(value: float, everyone: list[TrialRow]) -> str:
        return verdict_of(config, trial(9, 0.9, value), everyone, epoch=2, goal=GOAL)[0]

    assert says(0.29, others) == "stop"
    assert says(0.31, others) == says(0.3, others) == "continue"
    assert says(0.0, others[:3]) == says(0.0, [*others[:3], trial(4, 0.9)]) == "continue", "three reached the epoch"


def test_a_trial_is_never_stopped_at_its_own_last_epoch():
    others = [trial(0, 0.3), trial(1, 0.2)]
    short = replace(trial(2, 0.1), config={"train": {"epochs": 1}})
    assert verdict(short, others) == "continue"
    assert verdict(replace(short, config={"train": {"epochs": 2}}), others) == "stop"


def test_patience_ends_a_trial_whose_best_stands_still_and_only_then():
    config = SchedulerConfig(name="none", patience=2, grace_fraction=0.1)
    assert rungs(config, 6) == (3, 4, 5)
    still, rising, stairs = trial(0, 0.3, 0.3, 0.3), trial(1, 0.3, 0.3, 0.31), trial(2, 0.3, 0.31, 0.31, 0.31)

    def says(row: TrialRow, min_delta: float = 0.0) -> str:
        scheduler = config.model_copy(update={"min_delta": min_delta})
        return verdict_of(scheduler, row, [], epoch=len(row.epochs), goal=GOAL)[0]

    assert says(still) == "stop"
    assert plateau(config, still, epoch=3, goal=GOAL)
    assert not plateau(config, still, epoch=2, goal=GOAL), "one epoch to compare with is needed"
    assert [says(rising, by) for by in (0.0, 0.01, 0.02)] == ["continue", "continue", "stop"]
    assert says(stairs) == "stop"


def test_patience_beside_asha_leaves_ashas_own_rungs_to_asha():
    config = SchedulerConfig(patience=2, grace_fraction=0.25, reduction_factor=3, min_trials=2)
    assert rungs(config, 8) == (2, 3, 4, 5, 6, 7)
    others = [trial(n, *[0.5 + n / 100] * 8) for n in range(2)]
    poor = replace(trial(9, 0.1, 0.2, 0.3, 0.4), config={"train": {"epochs": 8}})
    assert verdict_of(config, poor, others, epoch=3, goal=GOAL) == ("continue", "epoch 3: still improving")
    assert verdict_of(config, poor, others, epoch=2, goal=GOAL)[0] == "stop"


def finished(*values: float | None, goal: Goal = GOAL, patience: int = 2, min_delta: float = 0.0) -> str | None:
    """Trials by number; None is a pruned one."""
    rows = [
        replace(trial(n, 0.9 if value is None else value, state="pruned" if value is None else "complete"), ended_ms=n)
        for n, value in enumerate(values)
    ]
    return stagnation(rows, goal, BudgetConfig(trials=99, patience=patience, min_delta=min_delta))


def test_a_study_stagnates_when_its_last_trials_improved_nothing():
    assert finished(0.1, 0.2, 0.2) is None
    assert "the last 2 known trials have not improved the best (budget.patience)" in finished(0.2, 0.2, 0.1)
    assert finished(0.1, 0.2, None, patience=2) is None
    assert finished(0.1, 0.2, None, None) is not None, "a pruned trial improves nothing"
    assert finished(0.1, 0.2, 0.21, 0.22, min_delta=0.05) is not None
    assert finished(0.1, 0.2, 0.21, 0.25, min_delta=0.05) is None
    assert finished(None, None, None) is None, "nothing was found yet that could be improved"
    assert stagnation([], GOAL, BudgetConfig(trials=9)) is None


def test_failed_and_dropped_trials_neither_improve_nor_count_as_stagnation():
    rows = [replace(trial(n, 0.3, state=state), ended_ms=n)
            for n, state in enumerate(["complete", "complete", "failed", "dropped", "failed", "running"])]  # fmt: skip
    budget = BudgetConfig(trials=99, patience=2)
    assert stagnation(rows, GOAL, budget) is None
    assert stagnation([*rows, replace(trial(9, 0.3, state="complete"), ended_ms=9)], GOAL, budget) is not None


def test_the_order_of_the_numbers_decides_and_not_that_of_ends():
    late = [replace(trial(n, value, state="complete"), ended_ms=10 - n) for n, value in enumerate([0.5, 0.1, 0.1])]
    budget = BudgetConfig(trials=9, patience=2)
    assert stagnation(late, GOAL, budget) == stagnation(late[::-1], GOAL, budget)
    assert stagnation(late, GOAL, budget) is not None, "that the best one ended last means nothing"


def test_the_best_stopped_trials_are_finished_as_they_were_when_they_were_stopped():
    def stopped(number: int, *robust: float, at: int, state: str = "pruned") -> TrialRow:
        return replace(trial(number, *robust, state=state), verdicts={at: "stop"}, finishing=len(robust) > at)

    rows = [
        trial(0, 0.9, state="complete"), stopped(1, 0.2, at=1), stopped(2, 0.1, 0.3, at=2),
        trial(3, 0.8, state="pruned"), stopped(4, 0.2, at=1),
    ]  # fmt: skip
    assert [row.number for row in to_finish(rows, GOAL, 2)] == [2, 1], "trial 3 was stopped by no rule"
    after = [*rows[:2], stopped(2, 0.1, 0.3, 0.05, at=2, state="complete"), *rows[3:]]
    assert [row.number for row in to_finish(after, GOAL, 2)] == [2, 1], "what its end brought makes no difference"
    failed = replace(rows[1], state="failed")
    assert [row.number for row in to_finish([failed, *rows[2:]], GOAL, 2)] == [2, 4]


def test_a_trial_that_widens_the_front_is_an_improvement():
    goal = Goal(metrics=("robust_accuracy", "clean_accuracy"))
    budget = BudgetConfig(trials=9, patience=2)

    def end(number: int, robust: float, clean: float) -> TrialRow:
        return replace(trial(number, robust, clean=clean, state="complete"), ended_ms=number)

    first = [end(0, 0.5, 0.6), end(1, 0.4, 0.6)]
    assert stagnation([*first, end(2, 0.3, 0.9)], goal, budget) is None
    assert stagnation([*first, end(2, 0.5, 0.55)], goal, budget) is not None


def test_several_metrics_rank_by_their_mean():
    goal = Goal(metrics=("robust_accuracy", "clean_accuracy"), at_least={"clean_accuracy": 0.5})
    assert score(record(1, 0.2, clean=0.8), goal) == pytest.approx(0.5)
    assert score(record(1, 0.9, clean=0.4), goal) == pytest.approx(-0.1)
    trials = [trial(0, 0.4, clean=0.6, state="complete"), trial(1, 0.3, clean=0.9, state="complete")]
    assert [row.number for row in ranked(trials, goal)] == [1, 0]
