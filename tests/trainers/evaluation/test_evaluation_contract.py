"""What every evaluation must satisfy, in either protocol and on any number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from tests.support.small import image_set, pgd_suite, small_clip, small_sets
from trainers import distributed
from trainers.evaluation.measure import evaluate, evaluate_sets
from trainers.evaluation.verdicts import SetResult, count, gather
from trainers.model.build import tokenizer_for
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.model.weights import load_weights, save_weights
from trainers.schema.suite import Suite

every_protocol = pytest.mark.parametrize("protocol", ["strict", "paper"])
EPS = (0.0, 1 / 255, 4 / 255, 16 / 255)


def settings(protocol: str, steps: int = 3, eps: tuple[float, ...] = EPS) -> Suite:
    return pgd_suite("small-dev", "small-other", eps=eps, steps=steps, protocol=protocol)


def measured(config: Suite, rank: int = 0, world_size: int = 1) -> SetResult:
    """A random model that reads tints: class embeddings are its own embeddings of plain tints."""
    model, images = RobustCLIP(small_clip()), image_set("set", 61)
    with torch.no_grad():
        embeddings = model.unit(model.embed(images.images.float() / 255))
    classes = model.unit(torch.stack([embeddings[images.labels == label].mean(0) for label in range(4)]))
    verdicts = evaluate(model, images, classes, config, rank=rank, world_size=world_size)
    result = count(verdicts)
    whole = gather(verdicts)
    assert whole.index.tolist() == list(range(61))
    assert tuple((~whole.fooled).sum(1).tolist()) == result.robust_correct
    return result


@every_protocol
def test_robust_accuracy_is_at_most_clean_and_falls_with_the_radius(protocol: str) -> None:
    result = measured(settings(protocol))
    assert result.robust_correct[-1] < result.clean_correct < result.n
    assert all(robust <= result.clean_correct for robust in result.robust_correct)
    assert list(result.robust_correct) == sorted(result.robust_correct, reverse=True)


@every_protocol
def test_a_radius_of_zero_is_clean_accuracy(protocol: str) -> None:
    result = measured(settings(protocol))
    assert result.robust_correct[0] == result.clean_correct


def test_more_steps_do_not_help_the_model_beyond_noise() -> None:
    counts = [sum(measured(settings("strict", steps)).robust_correct) for steps in (1, 4, 16)]
    assert counts[0] >= counts[1] - 1 >= counts[2] - 2


def test_strict_finds_at_least_what_the_same_attacks_last_iterate_finds() -> None:
    strict, paper = (measured(settings(protocol)) for protocol in ("strict", "paper"))
    assert strict.clean_correct == paper.clean_correct
    assert all(s <= p for s, p in zip(strict.robust_correct, paper.robust_correct, strict=True))


@small_sets()
def test_named_sets_are_measured_with_their_own_prompts(tmp_path: Path) -> None:
    clip = small_clip()
    results = evaluate_sets(clip, settings("strict", eps=(2 / 255,)))
    assert {name: result.n for name, result in results.items()} == {"small-dev": 50, "small-other": 41}
    images = image_set("small-dev", 50, seed=2)
    classes = class_embeddings(clip, images.prompts(), tokenizer_for(clip))
    again = evaluate(RobustCLIP(clip), images, classes, settings("strict", eps=(2 / 255,)))
    assert count(again) == results["small-dev"]
    reloaded = load_weights(save_weights(tmp_path / "w.safetensors", clip))
    assert evaluate_sets(reloaded, settings("strict", eps=(2 / 255,)))["small-dev"] == count(again)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        results = [measured(settings(protocol), distributed.rank(), 2) for protocol in ("strict", "paper")]
        torch.save([(r.n, r.clean_correct, r.robust_correct) for r in results], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_workers_count_what_one_counts(tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    one = [measured(settings(protocol)) for protocol in ("strict", "paper")]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [(r.n, r.clean_correct, r.robust_correct) for r in one]
