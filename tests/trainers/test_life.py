"""Signs of life: every stage of a run says how far it is, to whoever listens, and as often as they want to know."""

from __future__ import annotations

import pytest
import torch

from tests.support.small import image_set, pgd_suite, small_clip, small_sets, trial
from trainers import life
from trainers.evaluation.measure import evaluate
from trainers.life import Stage, every, listening
from trainers.model.robust import RobustCLIP
from trainers.model.weights import save_weights
from trainers.schema.records import Decision, Sign
from trainers.training.loop import train


def test_every_stage_of_a_run_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    heard: list[Sign] = []
    weights = save_weights(tmp_path / "start.safetensors", small_clip())
    with small_sets():
        train(trial(weights), report=lambda _: Decision.CONTINUE, workdir=tmp_path / "run", listener=heard.append)
    stages = [sign.stage for sign in heard]
    assert list(dict.fromkeys(stages)) == ["teacher", "training", "evaluation"]
    for stage in ("teacher", "training"):
        done = [sign.done for sign in heard if sign.stage == stage]
        assert max(done) == next(sign.total for sign in heard if sign.stage == stage)
    assert all(0 < sign.done <= sign.total for sign in heard)


def test_nobody_listens_unless_asked(monkeypatch):
    with listening(None):
        Stage("training", 10).at(5)
    heard: list[Sign] = []
    with listening(heard.append):
        inside = Stage("training", 10)
    inside.at(4)
    Stage("training", 10).at(5)
    assert [sign.done for sign in heard] == [4], "a stage is heard by whoever listened when it began"


def test_the_rate_leaves_out_the_first_step(monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(life.time, "monotonic", lambda: next(clock))
    heard: list[Sign] = []
    with listening(heard.append):
        stage = Stage("training", 100)
    for _ in range(3):
        stage.more(20)
    assert [sign.images_per_second for sign in heard] == [0.0, 10.0, 10.0]
    assert [sign.seconds_left for sign in heard] == [None, 6.0, 4.0]


def test_one_sign_in_ten_seconds_and_the_first_of_a_stage(monkeypatch):
    now = 0.0
    monkeypatch.setattr(life.time, "monotonic", lambda: now)
    heard: list[Sign] = []
    listener = every(10.0, heard.append)

    def say(at: float, stage: str, done: int) -> None:
        nonlocal now
        now = at
        listener(Sign(stage=stage, done=done, total=100, images_per_second=1.0))

    for at, stage, done in ((0, "training", 1), (9, "training", 2), (11, "training", 3), (12, "evaluation", 4)):
        say(at, stage, done)
    say(13, "evaluation", 5)
    assert [sign.done for sign in heard] == [1, 3, 4]


@pytest.mark.parametrize("eps", [("2/255",), ("2/255", "8/255")])
def test_an_evaluation_counts_the_images_that_it_attacks(eps):
    images = image_set("x", 40)
    model = RobustCLIP(small_clip())
    classes = torch.nn.functional.normalize(torch.randn(len(images.classes), model.visual.output_dim), dim=1)
    looked: list[int] = []
    found = evaluate(model, images, classes, pgd_suite("x", eps=eps, steps=1), looked=looked.append)
    right = int((found.clean.prediction == images.labels[found.index]).sum())
    assert sum(looked) == right * len(eps)
