"""What a plan says of the rule of knowledge: lag, how many run at once, and the share of time that slots are idle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.plan.idle import idle_share, knowledge_line, knowledge_notes, knowledge_plan
from study.plan.study import plan_of, plan_text
from study.spec.config import STOPPING, SchedulerConfig, StudyConfig
from study.spec.files import load_study
from study.store.store import StudyStore

ROOT = Path(__file__).parents[3]
DEMO = load_study(ROOT / "study" / "recipes" / "demo.yaml").model_copy(update={"lag": "auto"})
RESULTS = ROOT / "tests" / "bench" / "results"


def idle(scheduler: str = "none", *, slots: int = 4, lag: int, trials: int = 100, **more) -> float:
    return idle_share(SchedulerConfig(name=scheduler), trials=trials, slots=slots, lag=lag, epochs=20, **more)


def spec(**changed) -> StudyConfig:
    return StudyConfig.model_validate({**DEMO.model_dump(mode="json"), **changed})


def test_where_nothing_is_waited_for_nothing_is_idle():
    assert idle(slots=1, lag=0) == 0
    assert idle("asha", lag=100) == 0
    assert idle(trials=3, lag=0, slots=1) == 0
    assert idle(trials=4, lag=3) == 0, "all have started at once"


def test_with_lag_0_trials_run_one_after_the_other():
    for scheduler in STOPPING:
        assert idle(scheduler, lag=0) == pytest.approx(3 / 4, abs=0.01)
    assert idle(slots=8, lag=3) == pytest.approx(0.5, abs=0.03), "four of eight slots are never used"


@pytest.mark.parametrize("scheduler", STOPPING)
def test_the_more_a_trial_may_not_know_the_less_is_idle(scheduler):
    shares = [idle(scheduler, lag=lag) for lag in (1, 2, 3, 5, 8, 16)]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] > 0.02
    assert shares[-1] < 0.001
    assert shares == [idle(scheduler, lag=lag) for lag in (1, 2, 3, 5, 8, 16)]


def test_early_stopping_makes_more_of_it_where_trials_are_long():
    for scheduler in ("asha", "median"):
        long, short = (idle(scheduler, lag=4, full_seconds=seconds) for seconds in (None, 20.0))
        assert long > short > idle("none", lag=4)
        assert idle(scheduler, lag=4, full_seconds=1e6) == pytest.approx(long, abs=0.001)


@pytest.mark.parametrize(
    ("scene", "method", "scheduler"),
    [("between", "TPE", "none"), ("between", "random + ASHA", "asha"), ("between", "TPE + median", "median"),
     ("long", "random + ASHA", "asha")],
)  # fmt: skip
def test_it_is_about_what_replays_of_measured_settings_find(scene, method, scheduler):
    """100 searches of 30 to 50 trials, 6 epochs each (docs/search-quality.md); those get better, and stop fewer."""
    record = json.loads((RESULTS / "search-lag.json").read_text())
    replayed = record["scenes"][scene]
    full = replayed["full_trial_seconds"] if replayed["start_up_seconds"] else None
    for lag in record["lags"]:
        measured = replayed["methods"][method]["lags"][str(lag)]
        trials = round(measured["complete"] + measured["pruned"]) + record["workers"]
        found = idle_share(
            SchedulerConfig(name=scheduler), trials=trials, slots=record["workers"], lag=lag, epochs=6,
            full_seconds=full, start_up=replayed["start_up_seconds"],
        )  # fmt: skip
        assert found == pytest.approx(measured["idle"], abs=0.05 if lag < 4 else 0.02)


def test_a_plan_says_the_rule_and_what_is_idle():
    found = knowledge_plan(spec(budget={"trials": 40}), slots=4, stored=None, full_seconds=None)
    assert {key: found[key] for key in ("lag", "lag_from", "slots", "at_once")} == {
        "lag": 5, "lag_from": "auto", "slots": 4, "at_once": 6,
    }  # fmt: skip
    share = "less than 1" if found["idle_share"] < 0.005 else f"about {100 * found['idle_share']:.0f}"
    assert knowledge_line(found) == (
        f"trial n knows trials 0 ... n-1-5 (lag 5: slots + 1); at most 6 at once; slots idle {share} %"
    )
    assert knowledge_notes(found) == []
    alone = knowledge_plan(spec(lag=0), slots=1, stored=None, full_seconds=60.0)
    assert (
        knowledge_line(alone) == "trial n knows trials 0 ... n-1 (lag 0); at most 1 at once; slots idle less than 1 %"
    )


def test_a_plan_for_a_cluster_says_what_is_known_of_it():
    auto = knowledge_plan(spec(), slots=None, stored=None, full_seconds=None)
    assert auto["lag"] is auto["at_once"] is auto["idle_share"] is None
    assert knowledge_line(auto) == (
        "trial n knows trials 0 ... n-1-lag; lag: the trials that fit when the study begins, plus 1"
    )
    given = knowledge_plan(spec(lag=7), slots=None, stored=None, full_seconds=None)
    assert knowledge_line(given) == (
        "trial n knows trials 0 ... n-1-7 (lag 7); at most 8 at once; what is idle depends on the trials that fit"
    )
    begun = knowledge_plan(spec(), slots=None, stored=9, full_seconds=None)
    assert "(lag 9, as it began); at most 10 at once" in knowledge_line(begun)


def test_slots_that_are_never_used_are_noted():
    found = knowledge_plan(spec(lag=2), slots=8, stored=None, full_seconds=None)
    assert knowledge_notes(found) == ["lag: 2 lets at most 3 trials run at once; 8 fit on this machine"]


def test_the_plan_of_a_study_that_began_elsewhere_has_its_lag(tmp_path, monkeypatch):
    for name in ("AGFT_STUDY_DB", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("study.artifacts.ready.usable_cores", lambda: 4)
    plan = plan_of(spec(budget={"trials": 2}), tmp_path)
    assert plan["this_machine"]["trials_at_once"] == 2
    assert (plan["knowledge"]["lag"], plan["knowledge"]["slots"]) == (5, 4), "as the driver counts"
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", DEMO.name)
    store.create(DEMO)
    assert plan_of(DEMO, tmp_path)["knowledge"]["lag_from"] == "auto", "it has not begun"
    store.set_study(store.acquire("a|1|0|m.b.1"), lag=1)
    plan = plan_of(DEMO, tmp_path)
    assert plan["knowledge"] | {"idle_share": 0} == {
        "lag": 1, "lag_from": "store", "slots": 4, "at_once": 2, "idle_share": 0,
    }  # fmt: skip
    text = plan_text(json.loads(json.dumps(plan)))
    assert (
        "  knowledge     trial n knows trials 0 ... n-1-1 (lag 1, as it began); at most 2 at once; slots idle" in text
    )
    assert "lag: 1 lets at most 2 trials run at once; 4 fit on this machine" in text
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert plan_of(spec(name="other"), tmp_path)["knowledge"]["slots"] is None
