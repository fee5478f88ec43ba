"""Gates of a promotion: numbers in, verdicts out; every rule on models whose right answers are written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from study.promotion.candidates import Standard
from study.promotion.gates import Gate, Measured, decide, outcome_of, resolved_floors
from study.results.rights import Rights, measurement
from study.spec.promotion import GatesConfig
from study.statistics import spread
from trainers.evaluation.record import Finding

ROBUST = Standard({"robust_accuracy": 1.0}, {"clean_accuracy": 0.8})
N = 400


def model(label: str, clean: int, robust: int, *, first: int = 0) -> Measured:
    """Right on so many of N images, those from `first` on; robust ones among them."""
    index = (np.arange(N) - first) % N
    rights = {"set": Rights(np.arange(N), index < clean, ("4/255",), (index < robust)[None])}
    return Measured(label, measurement(rights), rights)


def verdicts(gates: dict[str, Any], own: Measured, champion: Measured | None = None, **more: Any) -> dict[str, Gate]:
    config = GatesConfig.model_validate({"sanity": None, **gates})
    clip = model("unmodified CLIP", 390, 100)
    asked: dict[str, Any] = {"spreads": None, "findings": None, "provenance": [], "dirty": [], **more}
    floors = resolved_floors(config, ROBUST, clip.result)
    return {gate.name: gate for gate in decide(config, ROBUST, own, clip, champion, floors=floors, **asked)}


def outcome(found: dict[str, Gate]) -> str:
    return outcome_of(list(found.values()))[0]


def test_without_a_champion_a_candidate_above_the_floors_and_clip_is_promoted():
    found = verdicts({}, model("trial 1", 350, 200))
    assert {gate.verdict for gate in found.values()} == {"passed", "not applicable"}
    assert outcome(found) == "promote"


def test_a_missed_floor_refuses_with_both_numbers():
    found = verdicts({"floors": {"clean_accuracy": ">= clip - 0.05"}}, model("trial 1", 350, 200))
    gate = found["floor clean"]
    assert (gate.verdict, gate.found, gate.needed) == ("failed", "87.5 %", ">= 92.5 %")
    assert gate.numbers == {"value": 0.875, "floor": pytest.approx(0.925)}
    assert outcome(found) == "refuse"


def test_no_better_than_clip_is_refused():
    found = verdicts({}, model("trial 1", 390, 100))
    assert found["better than CLIP"].verdict == "failed"
    assert outcome(found) == "refuse"


def test_the_same_model_again_keeps_the_champion():
    found = verdicts({}, model("trial 1", 350, 200), model("champion", 350, 200))
    assert [name for name, gate in found.items() if gate.verdict == "failed"] == ["improvement"]
    assert outcome(found) == "keep"


def test_better_in_the_goal_but_worse_beyond_the_margin_elsewhere_is_refused():
    found = verdicts({}, model("trial 1", 340, 230), model("champion", 380, 200))
    assert found["improvement"].verdict == "passed"
    assert found["non-inferior clean"].verdict == "failed"
    assert found["non-inferior clean"].numbers["mean"] == pytest.approx(0.1)
    assert found["non-inferior robust"].verdict == "passed"
    assert outcome(found) == "refuse"


def test_the_bound_and_not_the_difference_decides_about_inferiority():
    """The same counts, 2 points apart; on the same images the bound is small, on quite other ones it is not."""
    champion = model("champion", 350, 208)
    near, far = model("trial 1", 350, 200), model("trial 1", 350, 200, first=200)
    gate = {"non_inferior": {"robust_accuracy": 0.05}}
    found = [verdicts(gate, own, champion)["non-inferior robust"] for own in (near, far)]
    assert [each.numbers["mean"] for each in found] == [pytest.approx(0.02)] * 2
    assert [each.verdict for each in found] == ["passed", "failed"]


def test_an_improvement_that_must_be_certain_is_judged_by_its_bound():
    own, champion = model("trial 1", 350, 204, first=3), model("champion", 350, 200)
    assert verdicts({}, own, champion)["improvement"].verdict == "passed"
    certain = verdicts({"improvement": {"certain": True}}, own, champion)["improvement"]
    assert certain.verdict == "failed"
    assert certain.numbers["mean"] == pytest.approx(0.01)
    assert certain.numbers["lower"] < 0


def test_an_improvement_by_a_margin_and_none_at_all():
    own, champion = model("trial 1", 350, 210), model("champion", 350, 200)
    assert verdicts({"improvement": {"by": 0.02}}, own, champion)["improvement"].verdict == "passed"
    assert verdicts({"improvement": {"by": 0.03}}, own, champion)["improvement"].verdict == "failed"
    same = verdicts({"improvement": None}, model("trial 1", 350, 200), champion)
    assert "improvement" not in same
    assert outcome(same) == "promote"


def test_a_champion_below_a_floor_is_improved_on_by_whoever_is_above():
    own, champion = model("trial 1", 350, 200), model("champion", 300, 250)
    found = verdicts({"non_inferior": {}}, own, champion)
    assert found["improvement"].verdict == "passed"
    assert outcome(found) == "promote"


@pytest.mark.parametrize(("values", "verdict"), [((0.50, 0.52, 0.54), "passed"), ((0.40, 0.52, 0.64), "failed")])
def test_the_spread_of_fresh_seeds(values, verdict):
    more = {"spreads": {"robust_accuracy": spread(values)}}
    found = verdicts({"max_seed_spread": {"robust_accuracy": 0.05}}, model("trial 1", 350, 200), **more)
    gate = found["seed spread robust"]
    assert gate.verdict == verdict
    assert gate.numbers == {"deviation": pytest.approx(np.std(values, ddof=1)), "limit": 0.05, "seeds": 3}


def test_a_spread_without_seeds_fails():
    found = verdicts({"max_seed_spread": {"robust_accuracy": 0.05}}, model("trial 1", 350, 200))
    assert found["seed spread robust"].verdict == "failed"


def test_provenance_clean_tree_and_sanity_say_what_is_wrong():
    finding = Finding(name="pgd-apgd-gap", outcome="failed", message="PGD leaves 40 %", anchor="pgd-apgd-gap")
    fine = finding.model_copy(update={"name": "deterministic", "outcome": "passed"})
    found = verdicts(
        {"clean_tree": True, "sanity": {}}, model("trial 1", 350, 200), provenance=["attempt 3 lacks inputs"],
        dirty=["attempt 3: 0123abcd with changes"], findings=[fine, finding],
    )  # fmt: skip
    assert found["provenance"].found == "attempt 3 lacks inputs"
    assert found["clean tree"].verdict == "failed"
    assert found["sanity"].found == "failed: pgd-apgd-gap (docs/sanity.md)"
    _, reason = outcome_of(list(found.values()))
    assert all(word in reason for word in ("provenance", "clean tree", "sanity"))
    assert verdicts({"sanity": {}}, model("trial 1", 350, 200), findings=[fine])["sanity"].verdict == "passed"
    assert verdicts({"sanity": {}}, model("trial 1", 350, 200))["sanity"].verdict == "failed", "not made is not passed"


def test_robust_accuracy_is_the_mean_over_radii_of_what_survives_every_attack():
    """Two radii, images 0 to 3: at the first three survive, at the second one."""
    clean, first, second = ([True] * 4, [True, True, True, False], [True, False, False, False])
    rights = {"a": Rights(np.arange(4), np.array(clean), ("1/255", "4/255"), np.array([first, second]))}
    assert rights["a"].of("robust_accuracy").tolist() == [1.0, 0.5, 0.5, 0.0]
    found = measurement(rights)
    assert (found["clean_accuracy"], found["robust_accuracy"]) == (1.0, 0.5)
    assert {eps: score["robust"] for eps, score in found["datasets"]["a"].items()} == {"1/255": 3, "4/255": 1}


def test_the_value_of_several_metrics_is_compared_image_by_image():
    standard = Standard({"robust_accuracy": 0.75, "clean_accuracy": 0.25}, {})
    own, champion = model("trial 1", 360, 220), model("champion", 380, 200)
    config = GatesConfig.model_validate({"sanity": None, "non_inferior": {}, "better_than_clip": False})
    [gate, _] = decide(
        config, standard, own, own, champion, floors={}, spreads=None, findings=None, provenance=[], dirty=[]
    )
    assert gate.name == "improvement"
    assert gate.numbers["mean"] == pytest.approx(0.75 * 0.05 - 0.25 * 0.05)


def test_a_checkpoint_that_was_rolled_back_from_is_refused_with_the_reason():
    found = verdicts({}, model("trial 1", 350, 200), taken_back="generation 3 took it back on 2026-11-28: complaints")
    assert "complaints" in found["not taken back"].found
    assert outcome(found) == "refuse"
