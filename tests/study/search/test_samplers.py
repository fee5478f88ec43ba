"""Who proposes what: the same in a study that is kept open and in one that is opened anew before every proposal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from study.search import samplers
from study.search.optuna_book import OptunaBook
from study.search.samplers import sobol_point, uniform, value_at
from study.spec.config import StudyConfig
from study.store.rows import TrialRow
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


class Book(OptunaBook):
    """The service's Optuna study on any storage, and without the store: `at_least` are the goal's floors."""

    def __init__(self, spec: StudyConfig, storage: Any = None, at_least: dict[str, float] | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.at_least, self.dimensions = spec, at_least or {}, spec.dimensions()
        self.storage = storage or optuna.storages.InMemoryStorage()
        self.study, self.ids = self._study("toy"), {}


def outcome(number: int, params: dict[str, Any], state: str = "complete", **accuracies: float) -> TrialRow:
    feasible = accuracies.pop("feasible", 1.0) == 1.0
    best = {"best_clean_accuracy": 1.0, "best_robust_accuracy": 0.0, "best_feasible": feasible}
    record = epoch_record(1, **best | {f"best_{name}": value for name, value in accuracies.items()})
    return TrialRow(number=number, state=state, params=params, config={}, started_ms=0, epochs=(record,))


def searched(
    spec: StudyConfig, robust: Callable[[dict[str, Any]], float], trials: int, *, book: Callable[[], Book] | None = None
) -> list[dict[str, Any]]:
    """Proposals one after the other, each told its value; `book` opens the study anew for every one."""
    kept, found = Book(spec), []
    for _ in range(trials):
        now = book() if book else kept
        number, params = now.propose()
        now.tell(outcome(number, params, robust_accuracy=robust(params)))
        found.append(params)
    return found


def bowl(params: dict[str, Any]) -> float:
    lr = math.log10(params["train.optimizer.lr"]) + 3
    return -((params["method.clean_weight"] - 0.7) ** 2) - (lr / 4) ** 2 - ((params["attack.steps"] - 4) / 10) ** 2


# --- reopened ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2", "qmc", "random"])
def test_a_study_that_is_opened_anew_before_every_proposal_goes_on_as_if_it_were_kept_open(sampler, tmp_path):
    spec = spec_of(sampler)

    def reopened() -> Book:
        return Book(spec, optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'toy.db'}"))

    kept, again = searched(spec, bowl, 12), searched(spec, bowl, 12, book=reopened)
    assert kept == again
    assert len({tuple(params.values()) for params in kept}) == 12
    assert searched(spec_of(sampler, seed=1), bowl, 2) != kept[:2]


def test_cma_es_keeps_its_generations_over_reopening(tmp_path):
    url = f"sqlite:///{tmp_path / 'toy.db'}"
    spec = spec_of("cmaes")
    searched(spec, bowl, 20, book=lambda: Book(spec, optuna.storages.RDBStorage(url)))
    trials = Book(spec, optuna.storages.RDBStorage(url)).study.trials
    generations = [trial.system_attrs.get("cma:generation") for trial in trials]
    # Three start-up trials, then generations of four; the fifth trial of one is the first of the next.
    assert generations == [None] * 3 + [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4]
    # Three ranges are modelled; the choice is a keyed draw.
    own = [uniform(0, n, "train.optimizer.name") < 0.5 for n in range(20)]
    assert [trial.params["train.optimizer.name"] == "sgd" for trial in trials] == own


def test_a_trial_that_was_drawn_is_given_back_as_it_was_and_not_sampled_again():
    spec = spec_of("cmaes")
    book = Book(spec)
    for _ in range(8):
        number, params = book.propose()
        book.tell(outcome(number, params, robust_accuracy=bowl(params)))
    number, params = book.propose()  # its driver dies here
    before = book.study.trials[number].system_attrs
    for _ in range(4):
        other, others = book.propose()
        book.tell(outcome(other, others, robust_accuracy=bowl(others)))
    assert book.parameters(number) == params
    assert book.study.trials[number].system_attrs == before
    book.tell(outcome(number, params, robust_accuracy=bowl(params)))
    assert {key: value for key, value in book.study.trials[number].system_attrs.items() if "cma" in key} == before


def test_a_given_trial_is_a_parent_of_later_generations():
    search = {path: entry for path, entry in PLAIN.items() if "choices" not in entry}
    spec = spec_of("nsga2", search, warm_starts=[{"method.clean_weight": 0.7, "attack.steps": 4}])
    book = Book(spec)
    samplers.enqueue_warm_starts(book.study, spec, book.dimensions)
    found = []
    for _ in range(8):
        number, params = book.propose()
        book.tell(outcome(number, params, robust_accuracy=bowl(params)))
        found.append(params)
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in book.study.trials]
    assert generations == [0] * 4 + [1] * 4
    assert found[0]["method.clean_weight"] == 0.7


def test_a_trial_whose_draws_a_crash_cut_short_keeps_what_was_drawn():
    spec = spec_of("random")
    book = Book(spec)
    book.study.sampler = samplers.sampler_for(spec, 0)
    half = samplers.draw(book.study.ask(), book.dimensions[:2])
    whole = book.parameters(0)
    assert {path: whole[path] for path in half} == half
    assert whole == Book(spec).propose()[1]


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
    given = spec_of("qmc", warm_starts=[{"method.clean_weight": 0.5}])
    book = Book(given)
    samplers.enqueue_warm_starts(book.study, given, book.dimensions)
    found = [book.propose()[1] for _ in range(5)]
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
        book = Book(spec, at_least=floors)
        xs = []
        for _ in range(60):
            number, params = book.propose()
            x = params["method.clean_weight"]
            clean = 0.9 - x
            book.tell(outcome(number, params, robust_accuracy=x, clean_accuracy=clean, feasible=clean >= 0.5))
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
    book = Book(spec)
    for place in range(16):
        number, params = book.propose()
        x = params["method.clean_weight"]
        state = {3: "failed", 5: "pruned"}.get(place, "complete")
        row = outcome(number, params, state, clean_accuracy=0.5 + x / 4, robust_accuracy=0.5 - x / 4)
        book.tell(row)
        book.tell(row)
    front = {trial.number for trial in book.study.best_trials}
    assert front == set(range(16)) - {3, 5}, "on a line nobody beats another"
    assert len(book.study.trials[0].values) == 2
