"""A task computes where it was promised to, or says what is missing: never on the CPU without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainers import device
from trainers.device import MINIMUM_DRIVER, driver_version, out_of_memory, task_device, usable, why_unusable
from trainers.errors import UserError

LOADED = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release Build  (dvs-builder)\nGCC 12.3.0\n"
)


@pytest.fixture
def old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver is loaded, and too old for torch."""
    file = tmp_path / "version"
    file.write_text(LOADED)
    monkeypatch.setattr(device, "DRIVER", file)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize("gpus", [1, 0.5, None], ids=["promised", "part of one", "nobody said"])
def test_a_gpu_behind_a_driver_that_is_too_old_is_never_replaced_by_the_cpu(gpus: float | None) -> None:
    assert driver_version() == "535.183.01"
    with pytest.raises(UserError, match=r"the NVIDIA driver is 535\.183\.01, and CUDA 13\.\d needs 580 or newer"):
        task_device(gpus)


@pytest.mark.usefixtures("old_driver")
def test_the_cpu_is_for_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert task_device(0).type == "cpu"
    assert usable(torch.device("cpu")).type == "cpu"
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert task_device().type == "cpu"


def test_without_a_driver_and_a_promise_there_is_the_cpu_and_with_a_promise_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "DRIVER", tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert task_device().type == "cpu"
    with pytest.raises(UserError, match="there is no NVIDIA driver here"):
        task_device(1)


def test_each_cause_has_its_own_words() -> None:
    assert "built without CUDA" in why_unusable(None, "580.65.06")
    assert "needs 525 or newer" in why_unusable("12.8", "470.82.01")
    assert "new enough, and shows no device" in why_unusable("13.0", "580.65.06")


def test_the_oldest_driver_in_the_deployment_guide_is_that_of_the_torch_that_is_pinned() -> None:
    root = Path(__file__).parents[2]
    assert torch.version.cuda is not None
    major = torch.version.cuda.split(".")[0]
    assert f"**NVIDIA driver {MINIMUM_DRIVER[major]} or newer**" in (root / "docs" / "deploy.md").read_text()


def test_the_cpus_allocator_too_is_recognised_by_what_it_really_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert out_of_memory(caught.value), caught.value
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
