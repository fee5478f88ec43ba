"""A study begins with the best trials of earlier ones, mapped by path; what does not fit is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from study.errors import UserError
from study.search.prior import check_prior, earlier_studies, resolve
from study.search.proposals import Proposer, first_proposals, given, pending
from study.spec.config import StudyConfig
from study.spec.dimension import apply_params
from study.spec.starts import Observation
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore
from tests.support.epochs import epoch_record
from tests.support.study_files import minimal_study
from trainers.schema.records import Measurement

SEARCH = {
    "method.scale_ratio": {"low": 0.2, "high": 1.0},
    "train.optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "train.optimizer.name": {"choices": ["sgd", "adamw"]},
}


def spec_of(name: str, search: dict[str, Any] = SEARCH, **more: Any) -> StudyConfig:
    return minimal_study(name=name, budget={"trials": 20}, search=search, **more)


def row_of(spec: StudyConfig) -> StudyRow:
    return StudyRow(
        name=spec.name, spec=spec, spec_hash="", desired="run", state="finished", created_ms=0, driven_seconds=0,
        token=1, lease_owner=None, lease_seconds=0, provenance=None,
        baseline=Measurement(clean_accuracy=0.8, robust_accuracy=0.1, datasets={}),
    )  # fmt: skip


def trial(
    spec: StudyConfig,
    number: int,
    robust: float,
    params: dict[str, Any],
    *,
    state: str = "complete",
    feasible: bool = True,
) -> TrialRow:
    record = epoch_record(4, robust, 0.7, best_feasible=feasible)
    config = apply_params(spec.base(), params, spec.dimensions())
    return TrialRow(number=number, state=state, params=params, config=config, started_ms=0, epochs=(record,))


def values(ratio: float, lr: float = 1e-3, name: str = "sgd") -> dict[str, Any]:
    return {"method.scale_ratio": ratio, "train.optimizer.lr": lr, "train.optimizer.name": name}


OLD = spec_of("old")
TRIALS = [
    trial(OLD, 0, 0.20, values(0.3)),
    trial(OLD, 1, 0.30, values(0.5)),
    trial(OLD, 2, 0.90, values(0.6), state="pruned"),
    trial(OLD, 3, 0.80, values(0.7), feasible=False),
    trial(OLD, 4, 0.40, values(0.8)),
    trial(OLD, 5, 0.39, values(0.8)),  # a repetition
    trial(OLD, 6, 0.10, values(0.9)),
    trial(OLD, 7, 0.95, values(0.95), state="failed"),
]


def prior(search: dict[str, Any] = SEARCH, top: int = 2, trials: Any = TRIALS, **more: Any) -> Any:
    spec = spec_of("new", search, prior={"studies": ["old"], "top": top}, **more)
    return resolve(spec, [(row_of(OLD), trials)])


def test_the_best_feasible_full_length_trials_are_run_again_best_first_and_none_twice():
    found = prior()
    assert [start.values["method.scale_ratio"] for start in found.starts] == [0.8, 0.5]
    assert [start.origin for start in found.starts] == ["old trial 4", "old trial 1"]
    assert found.notes == ()
    assert [start.values["method.scale_ratio"] for start in prior(top=9).starts] == [0.8, 0.5, 0.3, 0.9]


def test_a_path_that_is_not_searched_here_is_ignored_and_one_that_was_fixed_there_is_found():
    search = {"method.scale_ratio": SEARCH["method.scale_ratio"], "method.clean_weight": {"low": 0.0, "high": 1.0}}
    old = spec_of("old", method={"name": "agft", "clean_weight": 0.25})
    found = prior(search, trials=[trial(old, 0, 0.4, values(0.8))])
    assert [start.values for start in found.starts] == [{"method.scale_ratio": 0.8, "method.clean_weight": 0.25}]


def test_a_number_outside_the_range_is_moved_to_its_end_and_a_strange_choice_left_to_the_sampler():
    search = {
        "method.scale_ratio": {"low": 0.2, "high": 0.6},
        "train.optimizer.lr": {"low": 1e-5, "high": 1e-4, "log": True},
        "train.optimizer.name": {"choices": ["adamw"]},
    }
    found = prior(search, top=1)
    assert found.starts[0].values == {"method.scale_ratio": 0.6, "train.optimizer.lr": 1e-4}
    assert found.starts[0].left_out == ("train.optimizer.name",)
    assert found.notes == (
        "old trial 4: method.scale_ratio: 0.8 is outside its range here, 0.6 taken",
        "old trial 4: train.optimizer.lr: 0.001 is outside its range here, 0.0001 taken",
        "old trial 4: train.optimizer.name: sgd is none of its choices here, sampled instead",
    )


def test_a_number_between_two_steps_goes_to_the_nearer_one():
    found = prior({"method.scale_ratio": {"low": 0.2, "high": 1.0, "step": 0.4}}, trials=[TRIALS[1]])
    assert found.starts[0].values == {"method.scale_ratio": pytest.approx(0.6)}


def test_a_length_that_was_given_in_another_way_is_not_taken_for_the_same_number():
    old = spec_of("old", method={"name": "agft", "logit_scale": 2.0})
    found = prior(
        {"method.logit_scale": {"of_model": {"low": 0.6, "high": 2.6}}}, trials=[trial(old, 0, 0.4, values(0.8))]
    )
    assert found.starts == ()
    assert found.notes == ("old trial 0: method.logit_scale: 2.0 is given in another way there, sampled here",)


def test_trials_of_a_method_that_is_not_searched_are_left_out_and_the_others_keep_theirs():
    several = spec_of("old", {"train.optimizer.lr": SEARCH["train.optimizer.lr"]}, alternatives=[{"name": "tecoa"}])
    trials = [
        trial(several, 0, 0.5, {"method.name": "tecoa", "train.optimizer.lr": 1e-3}),
        trial(several, 1, 0.4, {"method.name": "agft", "train.optimizer.lr": 1e-4}),
    ]
    found = prior(trials=trials)
    assert [start.values for start in found.starts] == [values(0.4, 1e-4, "sgd")]
    assert found.notes == ("old trial 0: left out, it is of tecoa, which is not searched here",)
    both = prior(alternatives=[{"name": "tecoa"}], trials=trials).starts
    assert both[0].values == {"method.name": "tecoa", "train.optimizer.lr": 1e-3, "train.optimizer.name": "sgd"}
    assert both[1].values == {"method.name": "agft", **values(0.4, 1e-4, "sgd")}


def test_a_study_without_a_feasible_trial_or_a_baseline_is_said_to_have_none():
    assert prior(trials=TRIALS[2:4]).notes == ("old: no feasible full-length trial",)
    spec = spec_of("new", prior={"studies": ["old"]})
    assert resolve(spec, [(replace(row_of(OLD), baseline=None), TRIALS)]).starts == ()


def test_several_studies_come_in_their_order_each_by_its_own_goal():
    other = spec_of("other", goal={"metric": "clean_accuracy"})
    clean = [replace(trial(other, n, 0.9 - n / 10, values(0.25 + n / 10)),
                     epochs=(epoch_record(4, 0.9 - n / 10, 0.5 + n / 10),)) for n in range(3)]  # fmt: skip
    spec = spec_of("new", prior={"studies": ["other", "old"], "top": 1})
    found = resolve(spec, [(row_of(other), clean), (row_of(OLD), TRIALS)])
    assert [start.origin for start in found.starts] == ["other trial 2", "old trial 4"]


def test_prior_trials_follow_the_files_own_values_and_are_not_repeated():
    spec = spec_of("new", prior={"studies": ["old"], "top": 1})
    starts = resolve(spec, [(row_of(OLD), TRIALS)]).starts
    assert [start.origin for start in given(spec, spec.dimensions(), starts)] == ["the file's values", "old trial 4"]
    found = first_proposals(spec, 3, given(spec, spec.dimensions(), starts))
    assert found[0] == values(0.4, 4e-4, "sgd")
    assert found[1] == values(0.8)
    assert found[2] not in found[:2]
    own = resolve(spec, [(row_of(OLD), [trial(OLD, 0, 0.9, found[0])])]).starts
    assert len(given(spec, spec.dimensions(), own)) == 1


def test_prior_studies_come_from_the_database_and_an_unknown_one_is_named_with_the_nearest(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    StudyStore(url, "old").create(OLD)
    spec = spec_of("new", prior={"studies": ["old"]})
    check_prior(url, spec)
    assert [(row.name, trials) for row, trials in earlier_studies(url, spec)] == [("old", [])]
    wrong = spec_of("new", prior={"studies": ["od"]})
    with pytest.raises(UserError, match=r"prior.studies: no study 'od'; did you mean 'old'\?"):
        check_prior(url, wrong)
    StudyStore(url, "new").create(wrong)
    check_prior(url, wrong)  # it exists: its given trials were looked up when it began
    assert earlier_studies(url, spec_of("plain")) == []


# --- what is observed ---------------------------------------------------------------------------------------------


def observing(search: dict[str, Any] = SEARCH, **more: Any) -> tuple[StudyConfig, Any]:
    prior = {"studies": ["old"], "top": 1, "observe": True}
    spec = spec_of("new", search, **{"sampler": {"name": "tpe"}, "prior": prior, **more})
    return spec, resolve(spec, [(row_of(OLD), TRIALS)])


def test_all_full_length_trials_of_the_same_measurement_are_observed_as_they_are():
    _, found = observing()
    assert [each.origin for each in found.observed] == [f"old trial {number}" for number in (0, 1, 3, 4, 5, 6)]
    assert found.observed[0] == Observation("old trial 0", values(0.3), {"clean_accuracy": 0.7, "robust_accuracy": 0.2})
    assert found.notes == ("old: 6 of 6 full-length trials are observed: they lie in this space",)
    _, narrow = observing(SEARCH | {"method.scale_ratio": {"low": 0.4, "high": 0.75}})
    assert [each.origin for each in narrow.observed] == ["old trial 1", "old trial 3"]
    assert observing(sampler={"name": "qmc"})[1].observed == ()


def test_results_of_another_measurement_are_not_observed_and_that_is_said():
    other = {**minimal_study().data.model_dump(mode="json"), "dev": ["tiny-digits"]}
    _, found = observing(data=other)
    assert found.observed == ()
    assert found.notes == ("old: not observed, its trials were measured on other dev sets or in another way",)


def ended_row(proposer: Proposer, rows: dict[int, TrialRow], number: int, robust: float) -> TrialRow:
    proposal = proposer.propose(rows, number, 0)
    return replace(pending(proposal), state="complete", epochs=(epoch_record(4, robust, 0.7),))


def test_observed_results_move_by_what_the_trials_that_were_run_again_differ_by():
    spec, found = observing()
    proposer = Proposer(spec, spec.goal.at({"clean_accuracy": 0.5}), found.starts, found.observed)
    assert [each.values for each in proposer._earlier([])] == [[0.2], [0.3], [0.8], [0.4], [0.39], [0.1]]
    row = ended_row(proposer, {}, 0, 0.3)  # of trial 4, which had 0.4
    moved = proposer._earlier([row])
    assert [each.values for each in moved] == [[pytest.approx(each)] for each in (0.1, 0.2, 0.7, 0.3, 0.29, 0.0)]
    assert dict(moved[0].constraints) == {"clean_accuracy": pytest.approx(-0.2)}


def test_a_sampler_that_observes_models_from_the_first_trial_that_nobody_gave():
    spec, found = observing(sampler={"name": "tpe", "startup_trials": 5})
    draws = first_proposals(spec, 2, found.starts)
    for observed, equal in ((found.observed, False), ((), True)):
        proposer = Proposer(spec, spec.goal.at({}), found.starts, observed)
        rows = {0: ended_row(proposer, {}, 0, 0.3)}
        assert rows[0].params == draws[0]
        assert (proposer.propose(rows, 1, 0).params == draws[1]) == equal
