"""Gates of a promotion: numbers in, verdicts out; every rule on models whose right answers are written down."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from study.models.manifest import Gate, Look
from study.promotion.candidates import Standard
from study.promotion.evidence import bound
from study.promotion.gates import Measured, by_evidence, decide, decide_finally, outcome_of, resolved_floors
from study.promotion.verdicts import gate_of, rederive
from study.results.rights import Rights, measurement
from study.spec.promotion import GatesConfig
from study.statistics import spread
from trainers.evaluation.record import Finding

ROBUST = Standard({"robust_accuracy": 1.0}, {"clean_accuracy": 0.8}, {"clean_accuracy": ">= 0.8"})
N = 400
LOOK = Look(number=2, level=0.01, hypotheses=2)


def model(label: str, clean: int, robust: int, *, first: int = 0) -> Measured:
    """Right on so many of N images, those from `first` on; robust ones among them."""
    index = (np.arange(N) - first) % N
    rights = {"set": Rights(np.arange(N), index < clean, ("4/255",), (index < robust)[None])}
    return Measured(label, measurement(rights), rights)


def verdicts(gates: dict[str, Any], own: Measured, champion: Measured | None = None, **more: Any) -> dict[str, Gate]:
    config = GatesConfig.model_validate({"sanity": None, **gates})
    clip = model("unmodified CLIP", 390, 100)
    look = None if champion is None else LOOK
    asked: dict[str, Any] = {"spreads": None, "findings": None, "provenance": [], "dirty": [], "look": look, **more}
    floors = resolved_floors(config, ROBUST, clip.result)
    found = decide(config, ROBUST, own, clip, champion, floors=floors, **asked)
    for gate in found:
        kept = Gate(**json.loads(json.dumps(gate.record())))
        assert rederive(kept) == kept, "a gate on record is derived from itself"
    return {gate.name: gate for gate in found}


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


def test_an_improvement_must_be_shown_unless_a_policy_asks_for_no_evidence():
    own, champion = model("trial 1", 350, 204, first=3), model("champion", 350, 200)
    certain = verdicts({}, own, champion)["improvement"]
    assert certain.verdict == "failed"
    assert certain.numbers["mean"] == pytest.approx(0.01)
    assert certain.numbers["lower"] < 0
    assert "at least" in certain.found
    assert "(99.5 %, look 2)" in certain.found, "1 % of this look, over two hypotheses"
    lax = verdicts({"improvement": {"certain": False}}, own, champion)["improvement"]
    assert lax.verdict == "passed"
    assert "evidence was not asked for (certain: false)" in lax.found


def test_the_level_of_a_look_and_its_hypotheses_decide():
    """The same images: enough for the first look of one candidate, not for the tenth of five."""
    own, champion = model("trial 1", 350, 230), model("champion", 350, 210)
    early, late = Look(number=1, level=0.025, hypotheses=1), Look(number=10, level=0.05 / 110, hypotheses=5)
    found = [verdicts({}, own, champion, look=look)["improvement"] for look in (early, late)]
    assert [gate.verdict for gate in found] == ["passed", "failed"]
    for gate, look in zip(found, (early, late), strict=True):
        assert gate.numbers["level"] == look.level / look.hypotheses
        expected = bound(gate.numbers["sets"], look.each)
        assert {name: gate.numbers[name] for name in ("mean", "lower", "upper")} == asdict(expected)


def test_an_improvement_by_a_margin_and_none_at_all():
    own, champion = model("trial 1", 350, 230), model("champion", 350, 200)
    assert verdicts({"improvement": {"by": 0.02}}, own, champion)["improvement"].verdict == "passed"
    assert verdicts({"improvement": {"by": 0.06}}, own, champion)["improvement"].verdict == "failed"
    same = verdicts({"improvement": None}, model("trial 1", 350, 200), champion)
    assert "improvement" not in same
    assert outcome(same) == "promote"


def test_a_champion_below_a_floor_is_improved_on_by_whoever_is_above():
    own, champion = model("trial 1", 350, 200), model("champion", 280, 250)
    found = verdicts({"non_inferior": {}}, own, champion)
    assert found["improvement"].verdict == "passed"
    assert "for certain below a floor" in found["improvement"].found
    assert outcome(found) == "promote"


def test_a_champion_that_may_be_above_its_floor_is_not_replaced_for_being_below():
    """79 % where 80 % are wanted, of 400 images."""
    own, champion = model("trial 1", 350, 200), model("champion", 316, 250)
    assert verdicts({"non_inferior": {}}, own, champion)["improvement"].verdict == "failed"
    lax = verdicts({"non_inferior": {}, "improvement": {"certain": False}}, own, champion)["improvement"]
    assert (lax.verdict, lax.found) == ("passed", "the champion is below a floor here")


def test_only_a_look_that_showed_what_it_was_for_hands_its_level_on():
    own, champion = model("trial 1", 350, 250), model("champion", 350, 200)
    assert by_evidence(list(verdicts({}, own, champion).values()))
    assert by_evidence(list(verdicts({"improvement": None}, own, champion).values()))
    assert not by_evidence(list(verdicts({"improvement": {"certain": False}}, own, champion).values()))
    assert not by_evidence(list(verdicts({"improvement": None, "non_inferior": {}}, own, champion).values()))
    assert not by_evidence(list(verdicts({}, own).values())), "there was no champion"
    assert not by_evidence(list(verdicts({}, champion, champion).values())), "nothing was shown"
    below = model("champion", 280, 250)
    assert not by_evidence(list(verdicts({"floors": {"clean_accuracy": ">= 0.99"}}, own, below).values())), "forced"


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
        config, standard, own, own, champion, look=LOOK, floors={}, spreads=None, findings=None, provenance=[], dirty=[]
    )
    assert gate.name == "improvement"
    assert gate.numbers["mean"] == pytest.approx(0.75 * 0.05 - 0.25 * 0.05)


def test_a_checkpoint_that_was_rolled_back_from_is_refused_with_the_reason():
    found = verdicts({}, model("trial 1", 350, 200), taken_back="generation 3 took it back on 2026-11-28: complaints")
    assert "complaints" in found["not taken back"].found
    assert outcome(found) == "refuse"


# The final sets: they have a veto, and one look.


def final(own: Measured, clip: Measured, floors: dict[Any, str] | None = None, **gates: Any) -> dict[str, Gate]:
    config = GatesConfig.model_validate(gates)
    found = decide_finally(config, ROBUST, floors or {}, (own, clip))
    for gate in found:
        kept = Gate(**json.loads(json.dumps(gate.record())))
        assert rederive(kept) == kept
    return {gate.name: gate for gate in found}


def test_who_is_not_for_certain_better_than_clip_on_the_final_sets_is_vetoed():
    clip = model("unmodified CLIP", 390, 100)
    for robust, verdict in ((80, "failed"), (100, "failed"), (104, "failed"), (140, "passed")):
        gate = final(model("trial 1", 350, robust), clip)["final better than CLIP"]
        assert gate.verdict == verdict, robust
    assert "robust accuracy" in gate.needed
    assert gate.numbers["level"] == 0.05
    assert outcome_of([replace(gate, verdict="failed")])[0] == "refuse"


def test_who_is_for_certain_below_a_floor_on_the_final_sets_is_vetoed():
    """CLIP has 97.5 %; the floor is at 92.5 %. A little below may be chance, a lot is not."""
    clip, floors = model("unmodified CLIP", 390, 100), {"clean_accuracy": ">= clip - 0.05"}
    for clean, verdict in ((380, "passed"), (366, "passed"), (320, "failed")):
        gate = final(model("trial 1", clean, 200), clip, floors)["final floor clean"]
        assert gate.verdict == verdict, clean
    assert gate.found.startswith("80.0 %, at most 8")
    assert gate.needed == "not for certain below 92.5 % (>= clip - 0.05)"


def test_a_floor_that_is_a_multiple_of_clip_is_compared_image_by_image():
    """Five times CLIP's 10 %: 50 %; 48 % may be that, 30 % is not."""
    clip, floors = model("unmodified CLIP", 390, 40), {"robust_accuracy": ">= clip * 5"}
    for robust, verdict in ((192, "passed"), (120, "failed")):
        found = final(model("trial 1", 390, robust), clip, floors)
        gate = found["final floor robust"]
        assert gate.verdict == verdict
        assert gate.numbers["floor"] == pytest.approx(0.5)
        assert gate.numbers["lower"] >= -1


def test_the_veto_can_be_given_up():
    own, clip = model("trial 1", 350, 80), model("unmodified CLIP", 390, 100)
    assert final(own, clip, {"clean_accuracy": ">= 0.99"}, final=False) == {}
    assert set(final(own, clip, {"clean_accuracy": ">= 0.99"}, better_than_clip=False)) == {"final floor clean"}


def test_final_sets_that_nobody_looked_at_have_nothing_to_say():
    gates = decide_finally(GatesConfig(), ROBUST, {"clean_accuracy": ">= 0.5"}, None, unseen="a dry run")
    assert [(gate.verdict, gate.found) for gate in gates] == [("not applicable", "a dry run")] * 2
    assert [rederive(gate) for gate in gates] == gates


# One arithmetic: what is on record is derived again from itself.


def test_a_changed_verdict_or_number_does_not_come_back():
    gate = verdicts({}, model("trial 1", 350, 204, first=3), model("champion", 350, 200))["improvement"]
    assert rederive(replace(gate, verdict="passed")) == gate
    sets = {"set": {**gate.numbers["sets"]["set"], "sum": 100}}
    assert rederive(replace(gate, numbers={**gate.numbers, "sets": sets})).verdict == "passed" != gate.verdict


def test_a_gate_that_is_none_is_named():
    with pytest.raises(KeyError, match="no gate is called 'luck'; gates: floor, better than CLIP"):
        gate_of("luck", {})


def test_what_a_dry_run_leaves_open_is_not_applicable():
    gate = gate_of("seed spread robust", {"limit": 0.02, "left_open": "a dry run trains nothing"})
    assert (gate.verdict, gate.found) == ("not applicable", "a dry run trains nothing")
    assert rederive(gate) == gate
