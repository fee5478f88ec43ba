"""Who may be promoted, by which standard; fresh seeds; what is on record of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.errors import StudyFailed, UserError
from study.promotion.candidates import candidates, floors_of, preference_of, shortage, standard_of
from study.promotion.gates import Measured, lacking, uncommitted
from study.promotion.retrain import fresh_seeds, median, repetition
from study.store.rows import Attempt
from study.store.store import StudyStore
from tests.support.epochs import weights
from tests.support.promoted import CODE, PROVENANCE, STUDY, finished_study

TRIALS = {0: (0.95, 0.30), 1: (0.90, 0.50), 2: (0.82, 0.55), 3: (0.60, 0.60), 4: (0.89, 0.40)}
FRONT = {"metrics": ["robust_accuracy", "clean_accuracy"]}


def study(tmp_path: Path, *, stopped: int = 5, **changed: Any) -> StudyStore:
    """Trials with these accuracies on dev (trial 3 below the floor), and one that was stopped early."""
    there = weights("s3://agft/x")
    rows: dict[int, Any] = {number: (there, *accuracies) for number, accuracies in TRIALS.items()}
    rows[stopped] = (None, 0.99, 0.9)
    return finished_study(f"sqlite:///{tmp_path}/studies.db", "chosen", "agft", rows, **changed)


def numbers(
    store: StudyStore, *, count: int = 9, number: int | None = None, preference: str | None = None
) -> list[int]:
    row = store.load()
    wanted = preference_of(row.spec, preference)
    return [trial.number for trial in candidates(row, store.trials(), count=count, number=number, preference=wanted)]


def test_the_best_full_length_feasible_trials_come_first(tmp_path):
    store = study(tmp_path)
    assert numbers(store) == [2, 1, 4, 0]
    assert numbers(store, count=2) == [2, 1]


def test_fewer_full_length_trials_than_candidates_are_said_in_a_sentence(tmp_path):
    store = study(tmp_path)
    row = store.load()
    found = candidates(row, store.trials(), count=9, number=None, preference=None)
    assert shortage(found, 4) is None
    assert str(shortage(found, 5)).startswith("only 4 full-length trials reach the floors, of 5 candidates asked for")
    assert str(shortage(found[:1], 2)).startswith("only 1 full-length trial reaches the floors, of 2 candidates")


def test_one_trial_by_name_is_taken_also_below_a_floor(tmp_path):
    assert numbers(study(tmp_path), number=3) == [3]


def test_a_trial_that_was_stopped_early_or_is_none_is_refused_with_those_that_are_full_length(tmp_path):
    store = study(tmp_path)
    with pytest.raises(
        UserError, match=r"--trial 5: it is pruned after 1 of 2 epochs \(asha at epoch 1\); only a trial"
    ):
        numbers(store, number=5)
    with pytest.raises(
        UserError, match=r"--trial 77: study 'chosen' has no such trial; full-length trials: 0, 1, 2, 3, 4"
    ):
        numbers(store, number=77)


def test_a_study_without_a_feasible_trial_has_nothing_to_promote(tmp_path):
    goal = {"metric": "robust_accuracy", "subject_to": {"clean_accuracy": ">= 0.97"}}
    with pytest.raises(StudyFailed, match="no finished trial that reaches every floor"):
        numbers(study(tmp_path, goal=goal))


def test_a_point_of_the_front_is_chosen_by_the_preference(tmp_path):
    store = study(tmp_path, goal=FRONT)
    assert numbers(store) == [1, 2, 0, 3], "by the mean; trial 4 is beaten by trial 1 in both"
    assert numbers(store, preference="robust=0.9,clean=0.1")[0] == 3
    assert numbers(store, preference="clean=1") == [0, 1, 2, 3]
    assert numbers(store, preference="max robust with clean >= 0.85") == [1, 0]
    assert numbers(store, preference="max clean with robust >= clip * 5.2") == [2, 3], "clip keeps 10 %"
    wanted = preference_of(store.load().spec, "max clean with robust >= clip * 5.2")
    assert floors_of(store.load().spec, wanted) == {"robust_accuracy": ">= clip * 5.2"}


def test_a_preference_is_in_the_study_file_too(tmp_path):
    promote = {**STUDY["promote"], "preference": {"robust": 0.9, "clean": 0.1}}
    store = study(tmp_path, goal=FRONT, promote=promote)
    assert numbers(store)[0] == 3
    standard = standard_of(store.load().spec, preference_of(store.load().spec, None), {})
    assert standard.name == "0.9 robust + 0.1 clean accuracy"


@pytest.mark.parametrize(
    "text", ["robust", "robust=x", "clean=-1", "max speed with clean >= 1", "max robust with clean > 1"]
)
def test_a_preference_that_means_nothing_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="--preference"):
        numbers(study(tmp_path, goal=FRONT), preference=text)


def test_a_preference_needs_a_front(tmp_path):
    with pytest.raises(UserError, match="chooses on a front; the goal of study 'chosen' is robust_accuracy alone"):
        numbers(study(tmp_path), preference="clean=1")


def test_fresh_seeds_are_the_same_every_time_and_none_of_the_searchs(tmp_path):
    store = study(tmp_path)
    row, trials = store.load(), store.trials()
    seeds = fresh_seeds(row, trials, 2, 20)
    assert seeds == fresh_seeds(row, trials, 2, 20)
    assert seeds[:5] == fresh_seeds(row, trials, 2, 5)
    assert len({*seeds, row.spec.seed, *(trial.config["seed"] for trial in trials)}) == 21
    assert seeds != fresh_seeds(row, trials, 1, 20)


def test_a_repetition_is_the_trial_itself_with_one_choice_left(tmp_path):
    store = study(tmp_path)
    again = repetition(store.load(), store.trial(2), (7, 8))
    assert (again.name, again.budget.trials, again.search) == ("chosen-seeds-2x2", 2, {"seed": {"choices": [7, 8]}})
    assert again.train.optimizer.lr == store.trial(2).config["train"]["optimizer"]["lr"] == pytest.approx(3e-3)
    assert again.scheduler.name == "none"


@pytest.mark.parametrize(("values", "seed"), [((0.5, 0.3, 0.9), 0), ((0.1, 0.2, 0.3, 0.4), 1), ((0.7, 0.7, 0.7), 1)])
def test_the_median_is_shipped_and_never_the_luckiest(values, seed):
    found = {place: Measured("x", {"robust_accuracy": value}, {}) for place, value in enumerate(values)}
    chosen = median(found, lambda each: (float(each.result["robust_accuracy"]),))
    assert chosen == seed


def test_a_complete_record_lacks_nothing_and_a_lost_one_is_named(tmp_path):
    store = study(tmp_path)
    trial = store.trial(1)
    assert lacking(trial) == []
    bare = Attempt(7, 0, provenance={"hostname": "a", "code": {"revision": None}})
    assert lacking(with_attempts(trial, bare)) == ["attempt 7 lacks packages, python, inputs, code revision"]
    assert lacking(with_attempts(trial, Attempt(7, 0))) == ["no attempt says where and with what it ran"]


def test_code_in_no_commit_is_named_wherever_it_took_part(tmp_path):
    trial = study(tmp_path).trial(1)
    assert uncommitted(trial, {"code": CODE}) == []
    dirty = Attempt(7, 0, provenance={**PROVENANCE, "code": {**CODE, "dirty": True}})
    found = uncommitted(with_attempts(trial, dirty), {"code": {"revision": None, "dirty": None}})
    assert found == ["attempt 7: 00000000 with changes", "this promotion: revision unknown"]


def with_attempts(trial: Any, *attempts: Attempt) -> Any:
    from dataclasses import replace

    return replace(trial, attempts=attempts)
