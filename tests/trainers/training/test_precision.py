"""In which arithmetic a run computes: resolved on its device, kept in its files, and left behind at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small import trial
from trainers.arithmetic import resolved_precision
from trainers.model.weights import CheckpointError, read_metadata
from trainers.schema.records import Decision, Progress
from trainers.training import run as run_module
from trainers.training.loop import train
from trainers.training.state import load_state
from trainers.trial_config import TrialConfig

CUDA = torch.device("cuda")


def config(weights: Path, **changes: Any) -> TrialConfig:
    return trial(weights, train={"epochs": 1, "batch_size": 40, "threads": 1, **changes})


def reports(config: TrialConfig, workdir: Path, **options: Any) -> list[Progress]:
    found: list[Progress] = []

    def report(progress: Progress) -> Decision:
        found.append(progress)
        return Decision.CONTINUE

    train(config, report=report, workdir=workdir, **options)
    return found


@pytest.mark.parametrize("has_it", [True, False])
def test_auto_is_bf16_where_the_gpu_has_it_and_fp32_elsewhere(has_it: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it or including_emulation)
    assert resolved_precision("auto", CUDA) == ("bf16" if has_it else "fp32")
    assert resolved_precision("auto", torch.device("cpu")) == "fp32"
    for name in ("fp32", "tf32", "bf16", "fp16"):
        assert resolved_precision(name, CUDA) == name


def test_what_auto_became_is_reported_and_in_both_files_and_must_be_the_same_to_go_on(
    weights: Path, tmp_path: Path
) -> None:
    [progress] = reports(config(weights), tmp_path)
    assert progress.precision == "fp32"
    assert progress.latest is not None
    assert progress.best is not None
    assert load_state(progress.latest).config.train.precision == "fp32"
    assert read_metadata(progress.best)["config"]["train"]["precision"] == "fp32"
    [again] = reports(config(weights, precision="fp32"), tmp_path / "again", resume_from=tmp_path)
    assert again.resumed
    with pytest.raises(CheckpointError, match=r"train\.precision \(there fp32, here bf16\)"):
        reports(config(weights, precision="bf16"), tmp_path / "other", resume_from=tmp_path)


def test_tf32_is_for_the_updates_alone(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def look(what: str) -> None:
        seen.append((what, torch.backends.cuda.matmul.fp32_precision))  # type: ignore[attr-defined]

    measured = run_module.evaluate
    monkeypatch.setattr(run_module, "evaluate", lambda *a, **k: (look("evaluation"), measured(*a, **k))[1])
    before = torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]
    reports(config(weights, precision="tf32"), tmp_path, observe=lambda *_: look("update"))
    assert set(seen) == {("update", "tf32"), ("evaluation", "ieee")}
    assert torch.backends.cuda.matmul.fp32_precision == before  # type: ignore[attr-defined]


def test_a_deterministic_run_takes_such_kernels_from_first_to_last_and_on_a_cpu_changes_no_bit(
    weights: Path, tmp_path: Path
) -> None:
    losses: dict[bool, list[float]] = {}
    for on in (False, True):
        own = losses.setdefault(on, [])

        def observe(_: int, values: dict[str, float], on: bool = on, own: list[float] = own) -> None:
            assert torch.are_deterministic_algorithms_enabled() == on
            own.append(values["loss"])

        reports(config(weights, deterministic=on), tmp_path / str(on), observe=observe)
        assert not torch.are_deterministic_algorithms_enabled()
    assert losses[True] == losses[False]
