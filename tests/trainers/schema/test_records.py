"""Which epoch is the best, counts and intervals, and what the schema must not import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from trainers.evaluation.record import wilson
from trainers.schema.records import Decision, Ending, Score, is_better, violation
from trainers.schema.training import Goal


@dataclass(frozen=True)
class Point:
    clean_accuracy: float
    robust_accuracy: float


GOAL = Goal(metric="robust_accuracy", at_least={"clean_accuracy": 0.6})


def test_the_first_epoch_is_the_best_so_far() -> None:
    assert is_better(Point(0.0, 0.0), None, GOAL)


def test_feasible_comes_before_infeasible_however_robust() -> None:
    assert is_better(Point(0.6, 0.1), Point(0.59, 0.5), GOAL)
    assert not is_better(Point(0.59, 0.5), Point(0.6, 0.1), GOAL)


def test_among_feasible_epochs_the_metric_decides() -> None:
    assert is_better(Point(0.6, 0.31), Point(0.9, 0.3), GOAL)
    assert not is_better(Point(0.9, 0.3), Point(0.6, 0.3), GOAL)  # a tie: the earlier one stays


def test_among_infeasible_epochs_the_smaller_violation_decides_then_the_metric() -> None:
    assert is_better(Point(0.5, 0.1), Point(0.4, 0.4), GOAL)
    assert is_better(Point(0.5, 0.2), Point(0.5, 0.1), GOAL)


def test_the_best_of_a_run_does_not_depend_on_the_order_of_comparison() -> None:
    points = [Point(c / 10, r / 10) for c in range(4, 8) for r in range(1, 4)]
    best = points[0]
    for point in points:
        best = point if is_better(point, best, GOAL) else best
    last = points[-1]
    for point in reversed(points):
        last = point if is_better(point, last, GOAL) else last
    assert (violation(best, GOAL), best.robust_accuracy) == (violation(last, GOAL), last.robust_accuracy) == (0, 0.3)


def test_violations_add_up_over_floors() -> None:
    goal = Goal(at_least={"clean_accuracy": 0.6, "robust_accuracy": 0.3})
    assert violation(Point(0.5, 0.1), goal) == pytest.approx(0.3)
    assert violation(Point(0.7, 0.3), goal) == 0


def test_a_score_is_its_counts() -> None:
    score = Score.of(correct=30, robust=12, total=40)
    assert (score.clean_accuracy, score.robust_accuracy) == (0.75, 0.3)


def test_wilsons_interval_is_the_textbooks() -> None:
    low, high = wilson(10, 100)  # Wilson 1927; e.g. Agresti & Coull 1998 give (0.0552, 0.1744)
    assert (low, high) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)
    with pytest.raises(ValueError, match="total > 0"):
        wilson(0, 0)


def test_decisions_are_words() -> None:
    assert [Decision(word) for word in ("continue", "stop", "pause")] == list(Decision)


def test_the_schema_is_read_without_torch() -> None:
    modules = "trainers.trial_config, trainers.objectives, trainers.data, trainers.schema.records"
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_trial_says_at_its_end_can_be_stored_whatever_it_is() -> None:
    ending = Ending.failed("bug", "no file caf\udce9.png\0 (é)")
    assert ending.message == "no file caf?.png\ufffd (é)"
    assert Ending.model_validate_json(ending.model_dump_json()) == ending
