"""On a real model, stronger attacks leave no more images right, and good ones agree on how many."""

from __future__ import annotations

import pytest

from trainers.data import load_dataset
from trainers.evaluation.measure import measure
from trainers.evaluation.record import wilson
from trainers.evaluation.scorer import Scorer
from trainers.evaluation.verdicts import stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.schema.attacks import APGD, PGD, AutoAttack
from trainers.schema.suite import AttackAt
from trainers.schema.training import ModelConfig

IMAGES, EPS = 60, 2 / 255  # half of them survive: one micro-batch


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three minutes on a core of its own
def test_autoattack_pgd_100_and_pgd_20_leave_ever_more_images_right_and_agree_within_95_percent() -> None:
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    images = load_dataset("tiny-digits", path="set")
    scorer = Scorer(RobustCLIP(clip), class_embeddings(clip, images.prompts(), tokenizer_for(clip)))
    index = stratified_sample(images.labels, IMAGES, seed=0)
    robust = {
        attack.label: int((~measure(scorer, images, index, AttackAt(attack=attack, eps=(EPS,))).fooled).sum())
        for attack in (AutoAttack(), APGD(targets=3), PGD(steps=100), PGD())
    }
    assert list(robust) == ["autoattack", "apgd-100-targets-3", "pgd-100", "pgd-20"]
    autoattack, apgd, long, short = robust.values()
    assert 0.3 * IMAGES < short < 0.7 * IMAGES, robust
    assert autoattack <= long <= short, robust
    for stronger, weaker in ((autoattack, apgd), (autoattack, long), (apgd, long), (long, short)):
        low, high = wilson(weaker, IMAGES)
        assert low <= stronger / IMAGES <= high, robust
