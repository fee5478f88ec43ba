"""The replays behind docs/search-quality.md: their clock, what counts as found, and what is said of many of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.bench.search_quality import filled, kept, markdown
from tests.bench.search_replay import METHODS, Replay, replay, seen, specification
from tests.bench.search_statistics import interval, mean_ranks, reach, summarise, time_to, wins
from tests.support.landscapes import COLOR_SHAPES, LANDSCAPES, Table
from trainers.schema.training import Goal

QUICK = [name for name in METHODS if not name.startswith("GP")]
REPEATED = [*QUICK, pytest.param("GP", marks=pytest.mark.slow), pytest.param("GP + ASHA", marks=pytest.mark.slow)]
GOAL = Goal(metric="robust_accuracy", at_least={"clean_accuracy": 0.5})


@pytest.fixture(scope="module")
def table() -> Table:
    return COLOR_SHAPES.table()


def params(*point: float) -> dict[str, float]:
    return dict(zip(COLOR_SHAPES.search, point, strict=True))


def flat(clean: float, robust: float, seconds: float = 1.0, epochs: int = 6):
    return ((clean, robust, seconds),) * epochs


SETTINGS = {"tiny-color-shapes": 5 * 4 * 4 * 3, "tiny-wide": 4 * 3 * 3 * 3 * 3}
MEASURED = ["tiny-color-shapes", *(name for name in ("tiny-wide",) if LANDSCAPES[name].settings.exists())]


@pytest.mark.parametrize("name", MEASURED)
def test_the_whole_grid_is_measured_and_every_level_has_its_share_of_the_range(name):
    landscape = LANDSCAPES[name]
    table = landscape.table()
    assert len(table.curves) == SETTINGS[name]
    assert sorted(table.curves) == sorted(tuple(point.values()) for point in landscape.points())
    for path, levels in table.levels.items():
        entry = landscape.entry(path)
        place = math.log if entry.get("log") else float
        low, high = place(entry["low"]), place(entry["high"])
        drawn = [low + (high - low) * (i + 0.5) / 4000 for i in range(4000)]
        rest = {name: values[0] for name, values in table.levels.items()}
        column = table.paths.index(path)
        values = [math.exp(x) if entry.get("log") else x for x in drawn]
        snapped = [table.snap({**rest, path: value})[column] for value in values]
        shares = [snapped.count(level) / 4000 for level in levels]
        assert min(shares) > 0.6 * max(shares), f"{path}: {shares}"


def test_a_value_counts_as_the_nearest_level_rates_by_their_ratio(table):
    point = (0.0005, 0.7, 1.0, 5 / 255)
    near = params(math.sqrt(0.0005 * 0.0012) * 0.999, 0.849, math.sqrt(1.8) * 0.999, 6.49 / 255)
    assert table.snap(near) == pytest.approx(point)
    beyond = params(math.sqrt(0.0005 * 0.0012) * 1.001, 0.851, math.sqrt(1.8) * 1.001, 6.51 / 255)
    assert table.snap(beyond) == pytest.approx((0.0012, 1.0, 1.8, 8 / 255))


def test_between_the_levels_a_curve_is_linear_and_on_them_it_is_the_measured_one(table):
    levels = [values[1] for values in table.levels.values()]
    np.testing.assert_allclose(table.between(params(*levels)), table.curves[tuple(levels)], atol=1e-12)
    other = [levels[0], table.levels["method.scale_ratio"][2], *levels[2:]]
    half = [levels[0], (levels[1] + other[1]) / 2, *levels[2:]]
    expected = (np.array(table.curves[tuple(levels)]) + np.array(table.curves[tuple(other)])) / 2
    np.testing.assert_allclose(table.between(params(*half)), expected, atol=1e-12)
    np.testing.assert_allclose(
        table.between(params(levels[0], 0.25, *levels[2:])), table.curves[levels[0], 0.4, *levels[2:]], atol=1e-12
    )  # beyond the outermost level


def test_a_trial_reports_its_best_feasible_epoch_and_its_truth_is_the_curve_there():
    found = seen(((0.9, 0.1, 1.0), (0.6, 0.3, 1.0), (0.4, 0.5, 1.0), (0.6, 0.2, 1.0)), GOAL)
    assert [record.best_epoch for record in found.records] == [1, 2, 2, 2]
    assert [record.best_feasible for record in found.records] == [True] * 4
    assert found.records[-1].best_robust_accuracy == found.truth == 0.3
    assert seen(flat(0.4, 0.3), GOAL).truth is None


def test_counts_that_are_drawn_anew_scatter_about_the_curve_and_leave_the_truth_alone():
    many = [seen(flat(0.8, 0.25, epochs=1), GOAL, images=240, seed=(n,)) for n in range(400)]
    robust = np.array([each.records[0].robust_accuracy for each in many])
    assert robust.mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 240 / 400))
    assert robust.std() == pytest.approx(math.sqrt(0.25 * 0.75 / 240), rel=0.15)
    assert {each.truth for each in many} == {0.25}
    assert seen(flat(0.8, 0.25), GOAL, 240, (1, 2)) == seen(flat(0.8, 0.25), GOAL, 240, (1, 2))


def run(
    method: str, landscape, *, horizon: float, seed: int = 0, workers: int = 2, lag: int | None = 3, **more
) -> Replay:
    spec = specification(method, seed, **more)
    return replay(spec, landscape, GOAL, fallback=0.1, workers=workers, start_up=2.0, horizon=horizon, lag=lag)


def test_the_simulated_clock_counts_start_up_and_epochs_on_every_worker():
    found = run("random", lambda point: flat(0.8, 0.25), horizon=24.5)
    assert found.claimed == 0.25
    assert found.complete == 6  # two workers, three rounds of 2 + 6 x 1 seconds
    assert found.times == (0.0, 8.0, 8.0, 16.0, 16.0, 24.0, 24.0)
    assert [found.at(clock) for clock in (0.0, 7.9, 8.0, 24.5)] == [0.1, 0.1, 0.25, 0.25]


def test_a_slot_is_idle_while_a_trial_that_has_to_end_before_the_next_one_runs():
    """Trial 0 takes 8 s, the others 4.5 s, on two slots with lag 1: trial 2 waits for trial 0 from 4.5 to 8 s, then
    two at a time start and end together."""
    proposed = iter(range(100))

    def landscape(point):
        return flat(0.8, 0.25, seconds=1.0 if next(proposed) == 0 else 2.5 / 6)

    found = run("random", landscape, horizon=12.6, lag=1)
    assert found.times == pytest.approx((0.0, 4.5, 8.0, 12.5, 12.5))
    assert found.idle == pytest.approx(3.5 / 25)
    proposed = iter(range(100))
    assert run("random", landscape, horizon=12.6, lag=None).idle == 0
    assert run("random", lambda point: flat(0.8, 0.25), horizon=99.0, lag=0).idle == 0.5
    assert run("random", lambda point: flat(0.8, 0.25), horizon=99.0, budget={"trials": 6}, lag=1).idle == 0


def timed(table, method, clock, lag, workers):
    """40 trials whose epochs take up to four times as long as measured, each its own number of times."""

    def landscape(point):
        longer = 1.0 + 3 * math.sin(clock + 1e3 * point["method.scale_ratio"]) ** 2 if clock else 1.0
        return tuple((clean, robust, longer * seconds) for clean, robust, seconds in table.between(point))

    return run(method, landscape, horizon=math.inf, lag=lag, workers=workers, budget={"trials": 40}).trials


@pytest.mark.parametrize("method", QUICK)
def test_what_is_proposed_and_stopped_depends_on_the_lag_and_not_on_the_clock(table, method):
    """However long trials take, and however many run side by side."""
    plain = timed(table, method, 0, 3, 2)
    for clock, workers in ((1, 2), (2, 2), (0, 1), (1, 4), (2, 9)):
        assert timed(table, method, clock, 3, workers) == plain
    if method not in ("random", "QMC", "NSGA-II"):
        assert timed(table, method, 0, 5, 2) != plain


def test_asynchronous_searches_know_all_that_has_ended(table):
    """On one slot that is everything before, which is what lag 0 says, too; on two the clock decides."""
    for method in QUICK:
        alone = [run(method, table.between, horizon=300, workers=1, lag=lag) for lag in (None, 0)]
        assert alone[0] == alone[1]
    assert timed(table, "TPE + ASHA", 0, None, 2) != timed(table, "TPE + ASHA", 1, None, 2)


def test_a_search_that_chooses_by_noisy_values_claims_more_than_it_found():
    spec = specification("random", 0)
    found = replay(
        spec, lambda point: flat(0.9, 0.25), GOAL, fallback=0.1, workers=2, start_up=2.0, horizon=200, lag=3, images=240
    )  # fmt: skip
    assert found.values[-1] == 0.25
    assert found.claimed > 0.27


def test_only_full_length_feasible_trials_become_the_incumbent():
    proposed = []

    def landscape(point):
        proposed.append(point["train.optimizer.lr"])
        good = point["train.optimizer.lr"] > 1e-3
        return flat(0.4, 0.9) if good else flat(0.8, 0.2)

    found = run("random", landscape, horizon=100)
    assert any(lr > 1e-3 for lr in proposed)
    assert set(found.values) == {0.1, 0.2}, "what misses the floor is never the best"


@pytest.mark.parametrize("method", REPEATED)
def test_every_search_is_repeatable_and_no_two_seeds_are_alike(table, method):
    again = [run(method, table.nearest, horizon=250, seed=seed) for seed in (3, 3, 4)]
    assert again[0] == again[1]
    assert again[0] != again[2]


def test_asha_stops_trials_and_gets_through_more_of_them(table):
    plain, early = (run(name, table.nearest, horizon=500) for name in ("random", "random + ASHA"))
    assert plain.pruned == 0
    assert early.pruned > early.complete / 2
    assert early.pruned + early.complete > 1.2 * plain.complete


def test_tpe_finds_more_than_random_search_where_there_is_something_to_find():
    """A smooth bowl: the mean over ten seeds after 60 trials."""

    def bowl(point):
        distance = math.log(point["train.optimizer.lr"] / 1e-3) ** 2 + 4 * (point["method.scale_ratio"] - 1) ** 2
        return flat(0.9, max(0.0, 0.5 - 0.1 * distance))

    best = {
        name: np.mean([run(name, bowl, horizon=240, seed=s).values[-1] for s in range(10)])
        for name in ("TPE", "random")
    }
    assert best["TPE"] > best["random"] + 0.002


def test_a_target_that_most_searches_miss_has_no_median_time():
    run_ = Replay((0.0, 5.0, 9.0), (0.1, 0.2, 0.3), 0.3, 2, 0, 0)
    assert [time_to(run_, target) for target in (0.1, 0.2, 0.25, 0.4)] == [0.0, 5.0, 9.0, math.inf]
    found = reach(np.array([3.0, 4.0, math.inf, math.inf, math.inf]), 10.0)
    assert found["median"] is None
    assert found["high"] is None
    assert found["reached"] == 0.4
    assert reach(np.array([3.0, 4.0, 5.0, 6.0, math.inf]), 10.0)["median"] == 5.0


def test_what_is_kept_of_a_search_says_the_same_at_every_moment():
    found = Replay((0.0, 2.0, 5.0, 9.0), (0.1, 0.2, 0.2, 0.3), 0.3, 2, 1, 0)
    again = Replay(**kept(found))
    assert again.times == [0.0, 2.0, 9.0]
    assert [again.at(clock) for clock in (0, 1.9, 2, 7, 9, 50)] == [found.at(clock) for clock in (0, 1.9, 2, 7, 9, 50)]
    assert (again.claimed, again.complete, again.pruned) == (0.3, 2, 1)


def test_wins_are_counted_seed_by_seed_and_ranks_share_ties():
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 4.0])
    assert wins(ours, theirs) == {"better": 1, "same": 1, "worse": 1}
    assert mean_ranks({"a": ours, "b": theirs, "c": np.zeros(3)}) == pytest.approx(
        {"a": (1.5 + 1 + 2) / 3, "b": (1.5 + 2 + 1) / 3, "c": 3.0}
    )


def test_a_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        low, high = interval(generator.normal(size=50))
        hits += low <= 0 <= high
    assert 86 <= hits <= 100


def test_the_page_takes_its_tables_again_and_again_and_keeps_its_words():
    runs = {
        "random": [Replay((0.0, 5.0), (0.1, 0.2), 0.3, 2, 0, 0)] * 3,
        "TPE": [Replay((0.0,), (0.3,), 0.4, 2, 1, 0)] * 2,
    }
    lines = list(markdown(summarise(runs, budgets=(4, 8), unit_seconds=1.0, reference="random")))
    page = "before\n<!-- table: one -->\n<!-- end -->\nafter\n<!-- table: two -->\nkept\n<!-- end -->\n"
    once = filled(page, "one", lines)
    assert filled(once, "one", lines) == once
    assert "| TPE | 2 | 30.0 ± 0.0 | 30.0 ± 0.0 | 40.0 | 2 / 0 / 0 | 1.0 | 0 | 100 % | 2 / 1 |" in once
    assert "| random | 3 | 10.0 ± 0.0 | 20.0 ± 0.0 | 30.0 |  | 2.0 | 5 | 100 % | 2 / 0 |" in once
    assert once.startswith("before\n<!-- table: one -->\n| search |")
    assert once.endswith("|\n\n<!-- end -->\nafter\n<!-- table: two -->\nkept\n<!-- end -->\n")
