"""A run that is asked to leave does so inside an epoch, and what it finds does not show when it was asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import multiprocessing

from tests.support.small import small_sets, trial
from trainers.schema.records import At, Decision, Progress, TrainResult
from trainers.schema.training import DataConfig, OptimizerConfig, TrainConfig
from trainers.teacher import rows
from trainers.training.loop import train
from trainers.training.run import BEST, LATEST
from trainers.trial_config import TrialConfig


@dataclass
class Pieces:
    """A run in pieces, each of which is asked to leave at the question after `questions` ones."""

    config: TrialConfig
    folder: Path
    questions: int
    asks: bool = True  # this rank
    states: list[At] = field(default_factory=list)
    told: list[tuple[int, bool]] = field(default_factory=list)
    count: int = 0

    def run(self) -> TrainResult:
        while (result := self._piece()).outcome == "paused":
            self.count += 1
            assert self.count < 100, "it goes on"
        return result

    def _piece(self) -> TrainResult:
        answered = 0

        def asked() -> bool:
            nonlocal answered
            answered += 1
            return self.asks and answered > self.questions

        def report(progress: Progress) -> Decision:
            self.told.append((progress.record.epoch, progress.resumed))
            return Decision.CONTINUE

        dist.is_initialized() and dist.barrier()  # rank 0's files are there
        begun = (self.folder / LATEST).is_file()
        return train(
            self.config, report=report, workdir=self.folder, resume_from=self.folder if begun else None, asked=asked,
            halfway=lambda path, at: self.states.append(at),
        )  # fmt: skip


def plain(config: TrialConfig, folder: Path) -> TrainResult:
    return train(config, report=lambda _: Decision.CONTINUE, workdir=folder)


def records(result: TrainResult) -> list[dict[str, Any]]:
    return [record.repeatable() for record in result.history]


def config(weights: Path, **options: Any) -> TrialConfig:
    """Two epochs of three updates, and two dev sets under two radii."""
    optimizer = OptimizerConfig(lr=3e-3)
    return trial(weights, train=TrainConfig(epochs=2, batch_size=40, optimizer=optimizer, threads=1, **options))


def assert_same_files(one: Path, other: Path) -> None:
    for name in (LATEST, BEST):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("questions", "options"),
    [
        pytest.param(3, {}, marks=pytest.mark.slow),
        pytest.param(4, {"ema": 0.9, "accumulation": 2}),
        pytest.param(6, {}, marks=pytest.mark.slow),
    ],
)
def test_a_run_in_pieces_finds_what_a_whole_one_finds(
    weights: Path, tmp_path: Path, questions: int, options: dict[str, Any]
) -> None:
    trial_config = config(weights, **options)
    whole = plain(trial_config, tmp_path / "whole")
    pieces = Pieces(trial_config, tmp_path / "pieces", questions)
    result = pieces.run()
    assert pieces.count >= 2
    assert {at.epoch for at in pieces.states} == {0, 1}
    assert [epoch for epoch, resumed in pieces.told if not resumed] == [1, 2], "each epoch is trained once"
    assert records(result) == records(whole)
    assert_same_files(tmp_path / "pieces", tmp_path / "whole")


def test_a_run_leaves_between_updates_among_images_under_attack_and_between_dev_sets(
    weights: Path, tmp_path: Path
) -> None:
    """An epoch asks at its start, after each of 3 updates, twice on each of two dev sets, and between those."""
    left: dict[int, list[int]] = {}
    for questions in (0, 2, 4, 6):
        states: list[At] = []
        result = train(
            config(weights), report=lambda _: Decision.CONTINUE, workdir=tmp_path / str(questions),
            asked=_after(questions), halfway=lambda _, at, states=states: states.append(at),  # type: ignore[misc]
        )  # fmt: skip
        assert (result.outcome, result.history) == ("paused", ())
        left[questions] = [at.steps for at in states]
    assert left == {0: [], 2: [2], 4: [3], 6: [4]}


def _after(questions: int) -> Callable[[], bool]:
    answered = 0

    def asked() -> bool:
        nonlocal answered
        answered += 1
        return answered > questions

    return asked


def test_a_run_leaves_the_teachers_pass_and_goes_on_behind_what_it_has(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "BATCHES", 1)
    train_config = TrainConfig(epochs=1, batch_size=40, samples_per_epoch=40, threads=1)
    short = trial(weights, data=DataConfig(train="small-large"), train=train_config)
    left = train(short, report=lambda _: Decision.CONTINUE, workdir=tmp_path / "run", asked=_after(1))
    assert (left.outcome, left.history, left.best) == ("paused", (), None)
    result = plain(short, tmp_path / "run")
    assert "going on behind" in caplog.text
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "another"))
    assert records(result) == records(plain(short, tmp_path / "whole"))


@small_sets()
def _worker(rank: int, folder: str, weights: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        here = config(Path(weights))
        whole = plain(here, Path(folder, "whole"))
        pieces = Pieces(here, Path(folder, "pieces"), 4, asks=rank == 1)
        result = pieces.run()
        assert pieces.count >= 2
        assert records(result) == records(whole)
        assert bool(pieces.states) == (rank == 0), "the first rank keeps the state"
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_leave_together_when_one_is_asked(weights: Path, tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, args=(str(tmp_path), str(weights)), nprocs=2)
    assert_same_files(tmp_path / "pieces", tmp_path / "whole")


SIGNALLED = """
import os, signal, time
from trainers.leaving import at_work, heed, told

def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    return told()

heed()
if {at_work}:
    with at_work():
        print(terminated(), flush=True)
terminated()
print("unreachable", flush=True)
"""


@pytest.mark.parametrize("at_work", [True, False])
def test_a_first_sigterm_asks_the_run_at_work_to_leave_and_any_other_ends_the_process(at_work: bool) -> None:
    code = SIGNALLED.replace("{at_work}", str(at_work))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split()) == (143, ["True"] if at_work else [])
