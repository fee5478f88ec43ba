"""Under every attack: a verdict depends on the image alone, skipping changes none, protocol paper is the letter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.small import image_set, small_clip
from trainers.arithmetic import exact_math
from trainers.attacks import Case, pgd, run_attack
from trainers.data.base import ImageSet
from trainers.draws import noise
from trainers.evaluation.measure import measure
from trainers.evaluation.readings import READINGS, overlap, top_classes
from trainers.evaluation.scorer import Scorer
from trainers.evaluation.summary import at_radii, clean_result
from trainers.evaluation.verdicts import Verdicts, join_verdicts, pack_verdicts, unpack_verdicts
from trainers.model.robust import RobustCLIP
from trainers.schema.attacks import EVAL_ATTACKS, EvalAttackParameters
from trainers.schema.suite import AttackAt

QUICK = {
    "pgd": {"steps": 4, "restarts": 2}, "cw": {"steps": 4}, "mi-fgsm": {"steps": 4}, "di-fgsm": {"steps": 4},
    "ti-fgsm": {"steps": 4, "kernel_size": 5}, "apgd-ce": {"steps": 8}, "apgd-dlr": {"steps": 8},
    "apgd-t": {"steps": 5, "targets": 2}, "square": {"queries": 20}, "apgd": {"steps": 5, "targets": 2},
    "ensemble": {"steps": 5, "targets": 2, "queries": 10}, "aa-agft": {"steps": 4},
    "transfer": {"attack": "pgd", "settings": {"steps": 4}}, "eot-pgd": {"steps": 3, "draws": 2},
    "spsa": {"steps": 3, "probes": 4}, "adaptive": {"steps": 2, "draws": 2, "probes": 2},
}  # fmt: skip
KEYED = [name for name, row in EVAL_ATTACKS.items() if row.keyed]
EPS = (2 / 255, 6 / 255)


def quick(name: str) -> EvalAttackParameters:
    return EVAL_ATTACKS[name].model_validate(QUICK.get(name, {}))


def subject(seed: int = 0) -> tuple[Scorer, ImageSet]:
    """A random model whose class embeddings are its own class means: right on most images, none of them safe."""
    model, images = RobustCLIP(small_clip(seed)), image_set("set", 75)
    with torch.no_grad():
        embeddings = model.unit(model.embed(images.images[:].float() / 255))
        means = model.unit(torch.stack([embeddings[images.labels == label].mean(0) for label in range(4)]))
    return Scorer(model, means), images


def measured(name: str, **changes: object) -> Verdicts:
    scorer, images = subject()
    settings: dict[str, object] = {"index": torch.arange(75), "surrogate": subject(1)[0], "original": subject(1)[0]}
    settings |= changes
    index = settings.pop("index")
    assert isinstance(index, Tensor)
    entry = AttackAt(attack=quick(name), eps=EPS)
    found = measure(scorer, images, index, entry, **settings)  # type: ignore[arg-type]
    measured.rows = scorer.rows  # type: ignore[attr-defined]
    return found


def same(one: Verdicts, other: Verdicts) -> bool:
    pairs = [(one.index, other.index), (one.label, other.label)]
    pairs += [(getattr(one.clean, name), getattr(other.clean, name)) for name in READINGS]
    pairs += [(getattr(one.attacked, name), getattr(other.attacked, name)) for name in READINGS]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", KEYED)
def test_neither_skipping_nor_the_batch_nor_the_share_changes_a_reading(name: str) -> None:
    whole = measured(name)
    computed = measured.rows  # type: ignore[attr-defined]
    assert 0 < int(whole.fooled[1].sum()) < 75
    assert same(measured(name, skip=False), whole)
    assert computed < measured.rows  # type: ignore[attr-defined]
    assert same(measured(name, batch_size=7), whole)
    shares = [measured(name, index=torch.arange(75)[rank::3]) for rank in range(3)]
    assert same(join_verdicts(shares), whole)


@pytest.mark.slow
def test_a_package_that_draws_for_the_batch_is_given_the_same_batches_whatever_is_asked_for() -> None:
    whole = measured("autoattack", index=torch.arange(12))
    assert same(measured("autoattack", index=torch.arange(12), batch_size=5), whole)
    assert same(measured("autoattack", index=torch.arange(12), skip=False), whole)


@pytest.mark.parametrize("name", ["pgd", "cw", "apgd"])
def test_protocol_paper_is_the_final_iterate_of_every_image(name: str) -> None:
    """The plain way: the attack on every image at once, its final images, the model's arg max."""
    scorer, images = subject()
    found = measured(name, protocol="paper", batch_size=7)
    pixels = images.images[:].float() / 255
    for row, eps in enumerate(EPS):
        case = Case(scorer, pixels, images.labels, torch.arange(75), eps, 4)
        with exact_math():
            final = run_attack(case, quick(name)).adversarial
            with torch.no_grad():
                logits = scorer(final)
        assert torch.equal(found.attacked.prediction[row], logits.argmax(1))
        assert torch.equal(found.attacked.margin[row], scored_margin(logits, images.labels))


def scored_margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits[torch.arange(len(labels)), labels]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def test_protocol_paper_attacks_images_that_are_wrong_already_and_may_make_them_right() -> None:
    strict, paper = measured("pgd"), measured("pgd", protocol="paper")
    wrong = ~strict.right
    assert wrong.any()
    assert strict.fooled[:, wrong].all()
    assert torch.equal(strict.attacked.margin[0][wrong], strict.clean.margin[wrong])
    assert (paper.attacked.margin[0][wrong] != paper.clean.margin[wrong]).any()


def test_pgd_in_protocol_paper_is_the_official_loop() -> None:
    """20 steps of eps from a random start; the last iterate."""
    scorer, images = subject()
    entry = AttackAt.model_validate({"attack": {"name": "pgd", "steps": 20, "step_size": "1/255"}, "eps": ["1/255"]})
    found = measure(scorer, images, torch.arange(75), entry, protocol="paper", seed=5)
    pixels = images.images[:].float() / 255

    def loss(x: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(scorer(x), images.labels, reduction="none")

    with exact_math():
        start = noise(5, 0, 0, torch.arange(75), tuple(pixels.shape[1:]))
        final = pgd(loss, pixels, eps=1 / 255, step_size=1 / 255, steps=20, start=start)
        with torch.no_grad():
            expected = scorer(final).argmax(1)
    assert torch.equal(found.attacked.prediction[0], expected)


def test_overlap_compares_with_what_the_original_says_of_the_clean_image() -> None:
    """Nine classes: with the four of the set all of them would be the top."""
    scorer, images = subject()
    other = subject(1)[0]
    for each in (scorer, other):
        each.classes = torch.nn.functional.normalize(torch.randn(9, 16, generator=torch.Generator().manual_seed(0)))
    entry = AttackAt(attack=quick("pgd"), eps=EPS)
    found = measure(scorer, images, torch.arange(75), entry, protocol="paper", original=other)
    pixels = images.images[:].float() / 255
    with torch.no_grad(), exact_math():
        others = top_classes(other(pixels))
        assert torch.equal(found.clean.overlap, overlap(top_classes(scorer(pixels)), others))
    alone = measure(scorer, images, torch.arange(75), entry, protocol="paper", original=scorer)
    assert (alone.clean.overlap == 1).all()
    assert alone.attacked.overlap[1].mean() < alone.attacked.overlap[0].mean() < 1


def test_a_radius_of_zero_is_the_image_itself() -> None:
    scorer, images = subject()
    entry = AttackAt(attack=quick("pgd"), eps=(0.0, 4 / 255))
    found = measure(scorer, images, torch.arange(75), entry)
    for name in READINGS[:-1]:
        assert torch.equal(getattr(found.attacked, name)[0], getattr(found.clean, name))


def test_no_image_at_all_is_an_empty_result() -> None:
    found = measured("pgd", index=torch.zeros(0, dtype=torch.int64))
    assert found.fooled.shape == (2, 0)


def test_verdicts_survive_being_bytes_and_damage_is_refused() -> None:
    whole = replace(measured("pgd"), doubts=("randomised",))
    data = pack_verdicts(whole, {"seconds": 1.5})
    again, facts = unpack_verdicts(data, "unit")
    assert same(again, whole)
    assert again.doubts == ("randomised",)
    half = replace(whole, index=whole.index + 100, doubts=("dynamic",))
    assert join_verdicts([again, half]).doubts == ("dynamic", "randomised")
    assert (again.name, again.eps, facts) == (whole.name, whole.eps, {"seconds": 1.5})
    flipped = bytearray(data)
    flipped[-3] ^= 1
    for damaged in (b"", data[:-9], bytes(flipped)):
        with pytest.raises(ValueError, match="unit: not a file of verdicts"):
            unpack_verdicts(damaged, "unit")
    with pytest.raises(ValueError, match="an image is in two parts"):
        join_verdicts([whole, whole])


def test_a_record_says_what_the_verdicts_say() -> None:
    whole = measured("pgd")
    clean, evidence = clean_result(whole)
    assert (clean.correct, clean.total) == (int(whole.right.sum()), 75)
    assert clean.low < clean.accuracy < clean.high
    assert evidence.margin == pytest.approx(float(whole.clean.margin.mean()), rel=1e-5)
    first, second = at_radii(whole)
    assert (first.label, second.label) == ("2/255", "6/255")
    assert [each.robust.correct for each in (first, second)] == (~whole.fooled).sum(1).tolist()
    assert second.evidence.confidence == pytest.approx(float(whole.attacked.confidence[1].mean()), rel=1e-5)
    assert second.evidence.top5_overlap == 1.0  # four classes: all are the top
    without = at_radii(measured("pgd", original=None))[0].evidence
    assert without.top5_overlap is None
