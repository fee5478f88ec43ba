"""What training promises: resuming, splitting over workers and stopping do not change the numbers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing

from tests.support.small import pgd_suite, small_sets, trial
from trainers.errors import UnknownName
from trainers.evaluation.measure import evaluate_sets
from trainers.model.weights import CheckpointError, export_open_clip, load_weights, read_metadata
from trainers.schema.records import At, Decision, EpochRecord, Progress, TrainResult
from trainers.schema.training import Goal, OptimizerConfig, TrainConfig
from trainers.training.loop import train
from trainers.training.run import epoch_order
from trainers.training.state import load_state
from trainers.training.update import NonFinite
from trainers.trial_config import TrialConfig

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 40, "optimizer": OptimizerConfig(lr=3e-3), "threads": 1}
WALL = {"timestamp_ms", "train_seconds", "eval_seconds", "images_per_second", "system"}


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, list[Progress]]:
    """Four epochs in one go."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    return folder, train(trial(weights), report=keep(seen), workdir=folder), seen


def keep(
    seen: list[Progress], *, at: int | None = None, then: Decision = Decision.STOP
) -> Callable[[Progress], Decision]:
    """Collect reports; at epoch `at` decide `then`."""

    def report(progress: Progress) -> Decision:
        seen.append(progress)
        return then if progress.record.epoch == at else Decision.CONTINUE

    return report


def numbers(history: tuple[EpochRecord, ...]) -> list[dict[str, Any]]:
    """The records without their clocks."""
    return [record.model_dump(exclude=WALL) for record in history]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def assert_equal_files(a: Path, b: Path) -> None:
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_four_epochs_equal_two_and_a_resume_and_two(
    whole: tuple[Path, TrainResult, list[Progress]], weights: Path, tmp_path: Path
) -> None:
    folder, result, _ = whole
    first, second = tmp_path / "first", tmp_path / "second"
    paused = train(trial(weights), report=keep([], at=2, then=Decision.PAUSE), workdir=first)
    assert paused.outcome == "paused"
    seen: list[Progress] = []
    resumed = train(trial(weights), report=keep(seen), workdir=second, resume_from=first)
    assert [(progress.record.epoch, progress.resumed) for progress in seen] == [(2, True), (3, False), (4, False)]
    assert seen[0].history == paused.history
    assert resumed.outcome == result.outcome == "finished"
    assert numbers(resumed.history) == numbers(result.history)
    assert_equal_files(second / "latest.safetensors", folder / "latest.safetensors")
    assert resumed.best_weights is not None
    assert result.best_weights is not None
    assert_equal_files(resumed.best_weights, result.best_weights)


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "accumulation": 2}], ids=["plain", "averaged"])
def test_every_state_from_inside_an_epoch_goes_on_to_the_same_bits(
    weights: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = trial(weights, train=TrainConfig(**SHORT, **options))
    plain = train(config, report=keep([]), workdir=tmp_path / "plain")
    kept: list[tuple[At, Path]] = []

    def halfway(path: Path, at: At) -> None:
        copy = tmp_path / f"kept-{len(kept)}.safetensors"
        shutil.copy(path, copy)
        kept.append((at, copy))

    often = trial(weights, train=TrainConfig(**SHORT, **options, checkpoint_minutes=1e-9))
    whole = train(often, report=keep([]), workdir=tmp_path / "whole", halfway=halfway)
    assert numbers(whole.history) == numbers(plain.history), "keeping states changes nothing"
    updates = whole.history[0].steps
    steps = updates + 1  # and the first of two dev sets
    assert [(at.epoch, at.steps) for at, _ in kept] == [(e, s) for e in (0, 1) for s in range(1, steps + 1)]
    assert [at.best for at, _ in kept[:steps]] == [0] * steps
    for number, (at, state) in enumerate(kept):
        seen: list[Progress] = []
        folder = tmp_path / f"again-{number}"
        resumed = train(config, report=keep(seen), workdir=folder, resume_from=state)
        told = [(1, True), (2, False)] if at.epoch else [(1, False), (2, False)]
        assert [(progress.record.epoch, progress.resumed) for progress in seen] == told
        assert numbers(resumed.history) == numbers(plain.history)
        assert_equal_files(folder / "latest.safetensors", tmp_path / "plain/latest.safetensors")
        if resumed.best_weights is not None:  # a best epoch before the kill has its weights in storage, not here
            assert plain.best_weights is not None
            assert_equal_files(resumed.best_weights, plain.best_weights)


def test_training_changes_the_image_encoder_only_and_learns(
    whole: tuple[Path, TrainResult, list[Progress]], weights: Path
) -> None:
    _, result, _ = whole
    assert result.best_weights is not None
    before, after = tensors(weights), tensors(result.best_weights)
    for name in before:
        assert torch.equal(before[name], after[name]) != name.startswith("visual."), name
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_reports_are_complete_and_consistent(whole: tuple[Path, TrainResult, list[Progress]]) -> None:
    folder, result, seen = whole
    assert [progress.record for progress in seen] == list(result.history)
    assert [len(progress.history) for progress in seen] == [1, 2, 3, 4]
    for progress in seen:
        record = progress.record
        assert record.steps == 3 * record.epoch
        assert progress.latest == folder / "latest.safetensors"
        assert (progress.best is not None) == (record.best_epoch == record.epoch)
        assert set(record.datasets) == {"small-dev", "small-other"}
        scores = [score for by_eps in record.datasets.values() for score in by_eps.values()]
        assert {score.total for score in scores} == {50, 41}
        assert record.robust_accuracy == pytest.approx(sum(score.robust_accuracy for score in scores) / 4)
        assert record.clean_accuracy == pytest.approx(sum(score.clean_accuracy for score in scores) / 4)
        assert record.train_loss == pytest.approx(record.parts["target"] + 0.5 * record.parts["label"])
    assert result.best == result.history[result.history[-1].best_epoch - 1]
    robust = [record.robust_accuracy for record in result.history]
    assert result.history[-1].best_robust_accuracy == max(robust)
    assert result.history[-1].best_epoch == robust.index(max(robust)) + 1


def test_the_best_weights_reproduce_the_best_epochs_counts_also_through_plain_open_clip(
    whole: tuple[Path, TrainResult, list[Progress]], weights: Path, tmp_path: Path
) -> None:
    _, result, _ = whole
    assert result.best_weights is not None
    assert result.best is not None
    assert read_metadata(result.best_weights)["epoch"] == result.best.epoch
    results = evaluate_sets(load_weights(result.best_weights), trial(weights).evaluate)
    assert {name: found.scores() for name, found in results.items()} == result.best.datasets
    folder = export_open_clip(result.best_weights, tmp_path / "export")
    plain = open_clip.create_model(f"local-dir:{folder}")
    theirs = plain.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in tensors(result.best_weights).items())


def test_stop_ends_the_run_after_the_epoch_it_was_said_at(weights: Path, tmp_path: Path) -> None:
    result = train(trial(weights), report=keep([], at=1), workdir=tmp_path)
    assert (result.outcome, len(result.history)) == ("stopped", 1)
    # A decision that was made while nobody listened is obeyed at the resume, before any work.
    again = train(trial(weights), report=keep([], at=1), workdir=tmp_path, resume_from=tmp_path / "latest.safetensors")
    assert (again.outcome, len(again.history)) == ("stopped", 1)


def test_a_finished_run_reports_once_more_and_returns(
    whole: tuple[Path, TrainResult, list[Progress]], weights: Path, tmp_path: Path
) -> None:
    folder, result, _ = whole
    seen: list[Progress] = []
    again = train(trial(weights), report=keep(seen), workdir=tmp_path, resume_from=folder)
    assert again.outcome == "finished"
    assert [(progress.record.epoch, progress.resumed) for progress in seen] == [(4, True)]
    assert numbers(again.history) == numbers(result.history)
    assert again.best_weights == tmp_path / "best.safetensors"


def test_lost_best_weights_are_written_again_where_the_state_is_the_best_epoch(weights: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    train(trial(weights), report=keep([], at=1), workdir=first)
    before = tensors(first / "best.safetensors")
    (first / "best.safetensors").unlink()
    seen: list[Progress] = []
    train(trial(weights), report=keep(seen, at=1), workdir=tmp_path / "second", resume_from=first)
    assert seen[0].best is not None
    assert all(torch.equal(before[name], value) for name, value in tensors(seen[0].best).items())


def test_a_state_of_another_configuration_is_refused_by_the_names_that_differ(
    whole: tuple[Path, TrainResult, list[Progress]], weights: Path, tmp_path: Path
) -> None:
    folder, _, _ = whole
    other = trial(weights, seed=4, method={"name": "agft", "scale_ratio": 0.5, "label_weight": 0.5})
    with pytest.raises(CheckpointError, match=r"different: method\.scale_ratio \(there 0\.4, here 0\.5\), seed "):
        train(other, report=keep([]), workdir=tmp_path, resume_from=folder)


def test_the_goals_floor_decides_what_is_best(weights: Path, tmp_path: Path) -> None:
    goal = Goal(metric="clean_accuracy", at_least={"robust_accuracy": 0.999})
    short = TrainConfig(epochs=2, batch_size=48, optimizer=OptimizerConfig(lr=1e-3), threads=1)
    result = train(trial(weights, goal=goal, train=short), report=keep([]), workdir=tmp_path)
    assert not any(record.feasible or record.best_feasible for record in result.history)
    closest = max(result.history, key=lambda record: record.robust_accuracy)
    assert result.history[-1].best_robust_accuracy == closest.robust_accuracy


def test_every_epoch_sees_every_image_once_in_another_order() -> None:
    orders = [epoch_order(50, None, seed=1, epoch=epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(epoch_order(50, 20, seed=1, epoch=2), orders[2][:20])
    assert not torch.equal(epoch_order(50, None, seed=2, epoch=0), orders[0])


def test_a_subset_per_epoch_trains_on_that_many_images(weights: Path, tmp_path: Path) -> None:
    config = trial(weights, train=TrainConfig(epochs=2, batch_size=16, samples_per_epoch=40, threads=1))
    result = train(config, report=keep([]), workdir=tmp_path)
    assert [record.steps for record in result.history] == [3, 6]


def test_a_loss_that_is_not_finite_is_raised_with_its_parts(weights: Path, tmp_path: Path) -> None:
    wild = TrainConfig(epochs=3, batch_size=16, optimizer=OptimizerConfig(lr=10), warmup=0, threads=1)
    config = trial(weights, train=wild, method={"name": "agft", "logit_scale": 1e38, "scale_ratio": 10})
    with pytest.raises(NonFinite, match=r"update \d+: the loss is not finite \(loss .*target .*\) on cpu"):
        train(config, report=keep([]), workdir=tmp_path)


def test_an_unknown_dataset_is_named_with_its_place(weights: Path, tmp_path: Path) -> None:
    config = trial(weights, evaluate=pgd_suite("small-dev", "smal-other", eps=("2/255",), steps=2))
    with pytest.raises(UnknownName, match=r"data\.dev\.1: 'smal-other' is not known; did you mean 'small-other'"):
        train(config, report=keep([]), workdir=tmp_path)


def test_global_random_state_and_threads_are_left_alone(weights: Path, tmp_path: Path) -> None:
    state, config = torch.random.get_rng_state(), trial(weights, train=TrainConfig(epochs=1, batch_size=48, threads=1))
    during: list[int] = []

    def report(_: Progress) -> Decision:
        during.append(torch.get_num_threads())
        return Decision.CONTINUE

    torch.set_num_threads(2)
    try:
        train(config, report=report, workdir=tmp_path)
        assert (during, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def short(weights: Path) -> TrialConfig:
    """Two epochs; the last batch of an epoch has one image, so one of two workers has none."""
    return trial(
        weights,
        train=TrainConfig(epochs=2, batch_size=19, optimizer=OptimizerConfig(lr=3e-3), threads=1),
        evaluate=pgd_suite("small-dev", "small-other", eps=("2/255",), steps=2),
    )


@small_sets()
def _worker(rank: int, folder: str, weights: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        seen: list[Progress] = []
        # Rank 0's word holds for all, whatever the others think.
        report = keep(seen, at=1, then=Decision.PAUSE if rank == 0 else Decision.STOP)
        paused = train(short(Path(weights)), report=report, workdir=Path(folder, "run"))
        assert paused.outcome == "paused"
        result = train(
            short(Path(weights)), report=keep(seen), workdir=Path(folder, "run"), resume_from=Path(folder, "run")
        )
        assert (result.best_weights is None) == (seen[0].latest is None) == (rank != 0)
        torch.save(numbers(result.history), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_workers_train_what_one_trains(weights: Path, tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, args=(str(tmp_path), str(weights)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert ranks[0] == ranks[1]
    one = train(short(weights), report=keep([]), workdir=tmp_path / "one")
    for ours, theirs in zip(numbers(one.history), ranks[0], strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-4)
        assert theirs["parts"] == pytest.approx(ours["parts"], rel=1e-3)
        assert theirs["clean_accuracy"] == pytest.approx(ours["clean_accuracy"], abs=0.03)
    left, right = (load_state(tmp_path / name / "latest.safetensors").model for name in ("run", "one"))
    start = tensors(weights)
    moved = math.sqrt(sum(float((right[name] - start[name]).square().sum()) for name in right))
    apart = math.sqrt(sum(float((left[name] - right[name]).square().sum()) for name in left))
    assert apart < 0.01 * moved
