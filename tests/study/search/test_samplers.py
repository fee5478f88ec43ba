"""Who proposes what, and from what it follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from study.search import samplers
from study.search.proposals import Proposer, given, pending, remembered
from study.search.samplers import sobol_point, uniform, value_at
from study.spec.config import StudyConfig
from study.store.rows import Proposal, TrialRow
from tests.support.epochs import epoch_record
from tests.support.study_files import minimal_study

PLAIN = {
    "method.clean_weight": {"low": 0.0, "high": 1.0},
    "train.optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True},
    "attack.steps": {"low": 1, "high": 8},
    "train.optimizer.name": {"choices": ["sgd", "adamw"]},
}
MODELLING = ("tpe", "cmaes", "nsga2")


def spec_of(sampler: str, search: dict[str, Any] = PLAIN, *, seed: int = 0, **more: Any) -> StudyConfig:
    few = {"tpe": {"startup_trials": 3}, "cmaes": {"startup_trials": 3, "population": 4}, "nsga2": {"population": 4}}
    own = {"name": sampler, **few.get(sampler, {})}
    settings = {"warm_starts": [], **more}
    return minimal_study(name="toy", seed=seed, budget={"trials": 1000}, search=search, sampler=own, **settings)


def ended(proposal: Proposal, state: str = "complete", *, feasible: bool = True, **accuracies: float) -> TrialRow:
    best = {"best_clean_accuracy": 1.0, "best_robust_accuracy": 0.0, "best_feasible": feasible}
    record = epoch_record(1, **best | {f"best_{name}": value for name, value in accuracies.items()})
    return replace(pending(proposal), state=state, epochs=(record,))


def searched_rows(
    spec: StudyConfig, robust: Callable[[dict[str, Any]], float], trials: int, *, anew: bool = False, lag: int = 0
) -> dict[int, TrialRow]:
    """Trials one after the other, each with its value; `anew`: nothing is kept from one proposal to the next."""
    goal, starts = spec.goal.at({}), given(spec, spec.dimensions())
    proposer, rows = Proposer(spec, goal, starts), {}
    for number in range(trials):
        proposal = (Proposer(spec, goal, starts) if anew else proposer).propose(rows, number, lag)
        rows[number] = ended(proposal, robust_accuracy=robust(proposal.params))
    return rows


def searched(spec: StudyConfig, robust: Callable[[dict[str, Any]], float], trials: int) -> list[dict[str, Any]]:
    return [row.params for row in searched_rows(spec, robust, trials).values()]


def bowl(params: dict[str, Any]) -> float:
    lr = math.log10(params["train.optimizer.lr"]) + 3
    return -((params["method.clean_weight"] - 0.7) ** 2) - (lr / 4) ** 2 - ((params["attack.steps"] - 4) / 10) ** 2


# --- reopened ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "qmc", "random"])
def test_a_proposal_follows_from_the_trials_before_it_and_from_nothing_that_a_driver_remembers(sampler):
    kept, again = (searched_rows(spec_of(sampler), bowl, 12, anew=anew, lag=2) for anew in (False, True))
    assert kept == again
    params = [row.params for row in kept.values()]
    assert len({tuple(each.values()) for each in params}) == 12
    assert searched(spec_of(sampler, seed=1), bowl, 2) != params[:2]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_what_pending_trials_find_meanwhile_changes_nothing_and_their_parameters_do(sampler):
    spec, lag = spec_of(sampler), 3
    rows = searched_rows(spec, bowl, 12, lag=lag)
    proposer = Proposer(spec, spec.goal.at({}), ())
    for state in ("running", "failed", "pruned"):
        meanwhile = {n: replace(row, state=state) if n >= 9 else row for n, row in rows.items()}
        assert proposer.propose(meanwhile, 12, lag) == proposer.propose(rows, 12, lag)
    elsewhere = {n: replace(row, params=rows[0].params) if n >= 9 else row for n, row in rows.items()}
    if sampler == "tpe":
        assert Proposer(spec, spec.goal.at({}), ()).propose(elsewhere, 12, lag) != proposer.propose(rows, 12, lag)
        better = rows | {8: replace(rows[8], epochs=(epoch_record(1, best_robust_accuracy=0.9),))}
        assert Proposer(spec, spec.goal.at({}), ()).propose(better, 12, lag) != proposer.propose(rows, 12, lag)


def test_cma_es_keeps_its_generations_in_its_trials():
    rows = searched_rows(spec_of("cmaes"), bowl, 20, anew=True)
    # Three start-up trials, then generations of four; the fifth trial of one is the first of the next.
    generations = [row.memory.get("cma:generation") for row in rows.values()]
    assert generations == [None] * 3 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4]
    # Three ranges are modelled; the choice is a keyed draw.
    own = [uniform(0, n, "train.optimizer.name") < 0.5 for n in range(20)]
    assert [row.params["train.optimizer.name"] == "sgd" for row in rows.values()] == own


@pytest.mark.parametrize("sampler", ["cmaes", "nsga2"])
def test_what_a_sampler_keeps_is_derived_where_it_is_missing(sampler):
    spec = spec_of(sampler)
    rows = searched_rows(spec, bowl, 12, lag=2)
    bare = {number: replace(row, memory=None) for number, row in rows.items()}
    assert remembered(Proposer(spec, spec.goal.at({}), ()), bare, 2) == rows


def test_a_given_trial_is_a_parent_of_later_generations():
    search = {path: entry for path, entry in PLAIN.items() if "choices" not in entry}
    spec = spec_of("nsga2", search, warm_starts=[{"method.clean_weight": 0.7, "attack.steps": 4}])
    rows = searched_rows(spec, bowl, 8)
    assert [row.memory["NSGAIISampler:generation"] for row in rows.values()] == [0] * 4 + [1] * 4
    assert rows[0].params["method.clean_weight"] == 0.7
    assert rows[0].origin == "warm start"


@pytest.mark.parametrize("sampler", MODELLING)
def test_a_modelling_sampler_finds_more_than_random_search(sampler):
    search = {path: entry for path, entry in PLAIN.items() if "choices" not in entry}

    def late(spec: StudyConfig) -> float:  # mean value of the last third
        return sum(bowl(params) for params in searched(spec, bowl, 60)[40:]) / 20

    means = [(late(spec_of(sampler, search, seed=s)), late(spec_of("random", search, seed=s))) for s in (1, 2)]
    assert all(model > plain / 2 for model, plain in means), means  # values are negative: half the loss


# --- keyed draws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "trials"), [("random", 8), ("tpe", 3), ("cmaes", 3), ("nsga2", 4)])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_further_parameter_leaves_the_others_draws_as_they_are(sampler, trials, seed):
    paths = list(PLAIN)
    for left_out in paths:
        fewer = {path: PLAIN[path] for path in reversed(paths) if path != left_out}
        short = searched(spec_of(sampler, fewer, seed=seed), lambda params: 0.0, trials)
        full = searched(spec_of(sampler, seed=seed), lambda params: 0.0, trials)
        assert short == [{path: params[path] for path in fewer} for params in full]


@pytest.mark.parametrize(
    "distribution",
    [
        CategoricalDistribution(["a", "b", "c", "d"]),
        IntDistribution(3, 6),
        IntDistribution(0, 9, step=3),
        FloatDistribution(0.2, 0.5, step=0.1),
    ],
    ids=str,
)
def test_equal_places_give_every_value_equally_often(distribution):
    counts = Counter(value_at(distribution, (i + 0.5) / 400) for i in range(400))
    assert set(counts.values()) == {100}
    assert len(counts) == 4
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in counts)


def test_a_log_range_is_even_in_its_logarithm_and_no_place_leaves_a_range():
    rates = FloatDistribution(1e-4, 1e-2, log=True)
    assert value_at(rates, 0.5) == pytest.approx(1e-3)
    for distribution in (rates, FloatDistribution(-1, 2), IntDistribution(1, 1000, log=True), IntDistribution(0, 3)):
        ends = [value_at(distribution, place) for place in (0.0, 1 - 2**-53)]
        assert all(distribution.low <= end <= distribution.high for end in ends)
        assert ends[0] == pytest.approx(distribution.low)
        assert ends[1] == pytest.approx(distribution.high)


def test_keyed_places_are_uniform_and_differ_by_every_part_of_the_key():
    places = [uniform(seed, number, path) for seed in (0, 1) for number in range(500) for path in ("a", "b")]
    assert len(set(places)) == 2000
    counts = Counter(int(10 * place) for place in places)
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


# --- Sobol -------------------------------------------------------------------------------------------------------


def test_sixteen_sobol_points_hit_every_sixteenth_of_every_range_once():
    search = {path: entry for path, entry in PLAIN.items() if path != "attack.steps"}
    found = searched(spec_of("qmc", search), lambda params: 0.0, 16)
    assert sorted(int(16 * params["method.clean_weight"]) for params in found) == list(range(16))
    rates = [(math.log10(params["train.optimizer.lr"]) + 5) / 4 for params in found]
    assert sorted(int(16 * rate) for rate in rates) == list(range(16))
    assert Counter(params["train.optimizer.name"] for params in found) == {"sgd": 8, "adamw": 8}
    assert [params["method.clean_weight"] for params in found] != [i / 16 for i in range(16)], "it is scrambled"


def test_a_given_trial_takes_no_point_of_the_sequence():
    plain = searched(spec_of("qmc"), lambda params: 0.0, 4)
    found = searched(spec_of("qmc", warm_starts=[{"method.clean_weight": 0.5}]), lambda params: 0.0, 5)
    assert found[0]["method.clean_weight"] == 0.5
    assert found[1:] == plain


def test_a_sobol_point_depends_on_its_index_and_seed_alone():
    assert sobol_point(3, 5, 1) == sobol_point(3, 5, 1)
    assert sobol_point(3, 5, 1) != sobol_point(3, 5, 2) != sobol_point(3, 6, 2)


# --- floors and several metrics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_floors_keep_the_search_out_of_the_infeasible_region(sampler):
    """The metric rises with x, the floor holds for x below 0.4; without the floor the search goes to the top."""
    search = {
        "method.clean_weight": PLAIN["method.clean_weight"],
        "train.optimizer.momentum": {"low": 0.0, "high": 0.9},
    }
    spec = spec_of(sampler, search)

    def late_feasible(floors: dict[str, float]) -> float:
        proposer, rows, xs = Proposer(spec, spec.goal.at(floors), ()), {}, []
        for number in range(60):
            proposal = proposer.propose(rows, number, 0)
            x = proposal.params["method.clean_weight"]
            clean = 0.9 - x
            rows[number] = ended(proposal, robust_accuracy=x, clean_accuracy=clean, feasible=clean >= 0.5)
            xs.append(x)
        return sum(x <= 0.4 for x in xs[30:]) / 30

    assert late_feasible({"clean_accuracy": 0.5}) > 0.6
    assert late_feasible({}) < 0.4


FRONT = {"goal": {"metrics": ["clean_accuracy", "robust_accuracy"]}}


def test_a_front_is_searched_in_as_many_directions_as_there_are_metrics():
    spec = spec_of("random", **FRONT)
    assert samplers.directions(spec) == ["maximize", "maximize"]
    assert samplers.values(spec, epoch_record(1, 0.25, 0.5)) == [0.5, 0.25]
    assert samplers.directions(spec_of("random")) == ["maximize"]
    assert samplers.values(spec_of("random"), epoch_record(1, 0.25, 0.5)) == [0.25]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "qmc", "random"])
def test_optuna_knows_the_front_and_stopped_and_failed_trials_are_not_in_it(sampler):
    spec = spec_of(sampler, **FRONT)
    proposer, rows = Proposer(spec, spec.goal.at({}), ()), {}
    for number in range(16):
        proposal = proposer.propose(rows, number, 0)
        x, state = proposal.params["method.clean_weight"], {3: "failed", 5: "pruned"}.get(number, "complete")
        rows[number] = ended(proposal, state, clean_accuracy=0.5 + x / 4, robust_accuracy=0.5 - x / 4)
    study = optuna.create_study(directions=samplers.directions(spec))
    study.add_trials([proposer.frozen(row) for row in rows.values()])
    front = {trial.number for trial in study.best_trials}
    assert front == set(range(16)) - {3, 5}, "on a line nobody beats another"
    assert len(study.trials[0].values) == 2
