"""What a suite costs: by hand, by counting what the engine computes, and in hours that say where they are from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from study.errors import UserError
from study.plan.cost import FOOLED_PASSES, Assumed, cost_of, cost_text, short, study_passes
from study.plan.rate import Rate, assumed_rate, chosen_rate, encoder_flops, measured_rate, stated_rate
from study.spec.files import load_study
from tests.support.small import image_set, small_clip
from trainers.evaluation.measure import measure
from trainers.evaluation.scorer import Scorer
from trainers.model.robust import RobustCLIP
from trainers.schema.attacks import EVAL_ATTACKS
from trainers.schema.suite import SUITES, AttackAt, Suite

RECIPE = Path("study/recipes/demo.yaml")
FOUR_CLASSES_CHEAP = {
    "apgd-t": {"steps": 5}, "apgd": {"steps": 5}, "square": {"queries": 20}, "ensemble": {"steps": 3},
    "eot-pgd": {"steps": 3, "draws": 2}, "spsa": {"steps": 3, "probes": 2},
    "adaptive": {"steps": 3, "draws": 2, "probes": 2},
}  # fmt: skip
AT_MOST = ("ensemble", "eot-pgd", "adaptive")  # who is fooled asks no more; who may be is asked for again


def suite(protocol: str = "strict", attack: str = "pgd", eps: tuple[str, ...] = ("2/255", "4/255")) -> Suite:
    entry = {"attack": {"name": attack}, "eps": eps, "samples": 100}
    return Suite.model_validate({"name": "s", "datasets": ["tiny-digits"], "attacks": [entry], "protocol": protocol})


def test_pgd_by_hand() -> None:
    """100 images, two radii: a look at each image, 20 steps and a look at the last iterate, a look at the worst one."""
    found = cost_of(suite(), Assumed(clean=0.8, robust=0.5), None)["total"]
    assert found["at_most"] == {"forward": 100 + 200 * (21 + 1), "backward": 200 * 20}
    attack = {"forward": 200 * (0.5 * 21 + 0.3 * FOOLED_PASSES), "backward": 200 * (0.5 * 20 + 0.3 * FOOLED_PASSES)}
    assert found["expected"] == {"forward": 100 + attack["forward"] + 0.8 * 200, "backward": attack["backward"]}


def test_protocol_paper_skips_nothing() -> None:
    found = cost_of(suite("paper"), Assumed(), None)["total"]
    assert found["expected"] == found["at_most"]


def test_a_radius_of_zero_costs_nothing() -> None:
    assert (
        cost_of(suite(eps=("0", "2/255")), Assumed(), None)["total"]
        == cost_of(suite(eps=("2/255",)), Assumed(), None)["total"]
    )


@pytest.mark.parametrize("name", EVAL_ATTACKS)
@pytest.mark.parametrize("assumed", [Assumed(1, 0), Assumed(1, 1), Assumed(0, 0), Assumed()])
def test_no_more_is_expected_than_it_costs_at_most(name: str, assumed: Assumed) -> None:
    found = cost_of(suite(attack=name), assumed, None)["total"]
    assert all(found["expected"][kind] <= most for kind, most in found["at_most"].items())
    if assumed.robust == 1:
        assert found["expected"] == found["at_most"]
    if assumed.clean == 0:
        assert found["expected"] == {"forward": 100, "backward": 0}


def scorer_and_images() -> tuple[Scorer, object]:
    model, images = RobustCLIP(small_clip()), image_set("set", 64)
    with torch.no_grad():
        embeddings = model.unit(model.embed(images.images[:].float() / 255))
    return Scorer(model, model.unit(torch.stack([embeddings[images.labels == k].mean(0) for k in range(4)]))), images


@pytest.mark.parametrize("protocol", ["strict", "paper"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "ensemble" else [])  # half a minute, of all the others
        for name, row in EVAL_ATTACKS.items()
        if row.keyed and name != "transfer"
    ],
)
def test_what_the_engine_computes_is_what_is_counted(name: str, protocol: str) -> None:
    """In protocol paper image by image; in protocol strict it is no more. (A transfer's surrogate counts elsewhere.)"""
    scorer, images = scorer_and_images()
    attack = {"name": name, **FOUR_CLASSES_CHEAP.get(name, {})}
    entry = AttackAt.model_validate({"attack": attack, "eps": ["1/255", "4/255"]})
    measure(scorer, images, torch.arange(64), entry, protocol=protocol, batch_size=64)  # type: ignore[arg-type]
    forward, _ = entry.attack.passes(4)
    counted = 64 * (1 + 2 * (forward + 1))
    assert scorer.rows <= counted
    if protocol == "paper" and name not in AT_MOST:
        assert scorer.rows == counted


def test_hours_are_passes_times_seconds() -> None:
    rate = Rate(forward=0.01, both=0.03, basis="somewhere")
    found = cost_of(suite("paper"), Assumed(), rate)
    assert found["total"]["hours_at_most"] == pytest.approx((500 * 0.01 + 4000 * 0.03) / 3600)
    assert "somewhere" in " ".join(cost_text(found).split())
    assert "hours: not known" in cost_text(cost_of(suite(), Assumed(), None))


def test_a_stated_pass_is_the_same_in_both_directions() -> None:
    rate = stated_rate(0.002)
    assert rate.hours({"forward": 900, "backward": 900}) == pytest.approx(1800 * 0.002 / 3600)
    assert "as stated, 2 ms a pass" in rate.basis


def test_flops_are_those_of_a_vit_by_hand() -> None:
    """12 blocks on 50 tokens of width 768: 12 d^2 weights each, and the two products of attention."""
    tokens, width = 50, 768
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    by_hand = 2 * (49 * 3 * 32**2 * width + 12 * block + width * 512)
    forward, backward = encoder_flops("ViT-B-32-quickgelu")
    assert forward == pytest.approx(by_hand, rel=1e-3)
    assert backward == pytest.approx(forward, rel=0.02)


@pytest.mark.parametrize(("arch", "giga"), [("RN50x4-quickgelu", 42.6), ("tiny-clip", 0.019), ("coca_ViT-B-32", 9.19)])
def test_flops_of_other_encoders(arch: str, giga: float) -> None:
    assert encoder_flops(arch)[0] / 1e9 == pytest.approx(giga, rel=0.02)


def test_an_assumed_speed_says_that_it_is_one() -> None:
    rate = assumed_rate("ViT-B-32-quickgelu", 10)
    assert rate.forward == pytest.approx(8.818e9 / 10e12, rel=1e-3)
    assert "an assumption, nothing was measured: a device that sustains 10 TFLOP/s in fp32" in rate.basis


def test_the_tiny_clip_is_timed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("study.plan.rate.SECONDS", 0.0)
    rate = measured_rate("tiny-clip", tmp_path)
    assert 0 < rate.forward < 60
    assert 0 < rate.both < 60
    assert rate.basis.startswith("measured just now on ")


def test_only_one_rate_is_taken(tmp_path) -> None:
    with pytest.raises(UserError, match="--seconds-per-pass, --tflops: each gives the time of a pass; use one"):
        chosen_rate(measure=None, seconds=1.0, tflops=1.0, arch="ViT-B-32", home=tmp_path)


def test_full_autoattack_on_all_images_costs_more_than_the_training() -> None:
    """AGFT's fine-tuning: 10 epochs of ImageNet; two attack steps of 2 passes and an update of 3."""
    training = 10 * 1_281_167 * (2 * 2 + 3)
    final = SUITES["zero-shot-15"][0]
    whole = AttackAt.model_validate({"attack": {"name": "autoattack"}, "eps": ["1/255"]})
    full = cost_of(final.model_copy(update={"attacks": (whole,)}), Assumed(), None)["total"]
    usual = cost_of(final, Assumed(), None)["total"]
    assert 30 < sum(full["at_most"].values()) / training < 40
    assert 10 < sum(full["expected"].values()) / training < 20
    assert sum(usual["expected"].values()) / training < 0.25


def test_a_studys_passes_by_hand() -> None:
    """The demo: 4 epochs of 1,024 images at 2 x 2 + 3 passes; 120 images of two dev sets at 1 + 11 + 1 + 10 an epoch.

    Promotion: 400 images of two confirm sets for two candidates, the unmodified CLIP and a champion, and of three final
    sets for two models.
    """
    assert study_passes(load_study(RECIPE)) == {
        "training": 4 * 1024 * 7,
        "evaluations": 4 * 2 * 120 * 23,
        "promotion": 400 * 23 * (2 * 4 + 3 * 2),
    }


@pytest.mark.parametrize("value", [("0", 0), ("999", 999), ("1 k", 999.6), ("43 k", 43_000), ("1.28 M", 1_281_167),
                                   ("3.13 G", 3.131e9), ("2,000 G", 2e12)])  # fmt: skip
def test_counts_have_three_digits(value: tuple[str, float]) -> None:
    assert short(value[1]) == value[0]


@pytest.mark.parametrize("name", ["zero-shot-15", "zero-shot-13-apgd", "tiny"])
def test_the_table_fits_a_terminal(name: str) -> None:
    cost = cost_of(SUITES[name][0], Assumed(), stated_rate(0.001))
    assert max(map(len, cost_text(cost, 1000).splitlines())) <= 80
