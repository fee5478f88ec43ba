"""A trial in a process that has trained others is the same as in a new one, to the last bit: weights and records."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from tests.support.small import pgd_suite
from trainers.model.weights import read_metadata
from trainers.objectives import METHODS
from trainers.schema.records import Answer, At, Decision, Report, Weights
from trainers.schema.training import AttackConfig, DataConfig, ModelConfig, TrainConfig
from trainers.trial_config import TrialConfig
from trainers.wiring import Wiring

CLOCKS = ("train_seconds", "eval_seconds", "timestamp_ms", "images_per_second", "system")


def config(method: str, **train: Any) -> dict[str, Any]:
    return TrialConfig(
        model=ModelConfig(arch="tiny-clip", pretrained="bundled"),
        method=METHODS[method](name=method),
        attack=AttackConfig(eps=4 / 255, steps=2),
        data=DataConfig(train="tiny-color-shapes"),
        train=TrainConfig.model_validate(
            {"epochs": 2, "batch_size": 24, "samples_per_epoch": 48, "optimizer": {"lr": 1e-4}, "warmup": 0, **train}
        ),
        evaluate=pgd_suite("tiny-shapes", eps=(4 / 255,), steps=1, samples=24),
    ).model_dump(mode="json")


PLAIN = {method: config(method) for method in METHODS}
OPTIONS = {
    "averages": config("agft", ema=0.9),
    "bf16": config("tecoa", precision="bf16"),
    "two threads": config("fare", threads=2),
    "compiled": config("agft", compile=True),
    "compiled, other sizes": config("tga-zsr", compile=True, batch_size=16),
}


def nothing(*_: Any) -> Any:
    return None


def no_facts() -> dict[str, Any]:
    return {}


def first() -> int:
    return 1


def go_on(told: Report) -> Answer:
    return Answer(Decision.CONTINUE, told.epoch)


def keep(folder: Path, _group: int, path: Path, role: str, _at: At, _stored: int) -> Weights:
    shutil.copy(path, folder / f"{role}.safetensors")
    return Weights(uri=str(folder / f"{role}.safetensors"), sha256="0" * 64)


def sha256(weights: Path) -> str:
    """Of the tensors; the file's header has times."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def in_turn(configs: Mapping[str, dict[str, Any]], folder: Path, done: Callable[[Any], None]) -> None:
    """Train them one after the other, as the worker of a seat does."""
    import ray.train.torch

    from trainers.worker import tidy, train_on_worker

    ray.train.torch.get_device = lambda: torch.device("cpu")  # it answers in a run of Ray Train alone
    found = {}
    for name, plain in configs.items():
        own = folder / name
        own.mkdir()
        wiring = Wiring(
            arrive=nothing, claim=first, fetch=nothing, keep=partial(keep, own), report=go_on, provenance=no_facts
        )
        ending = train_on_worker({"config": plain, "wiring": wiring, "threads": 1, "gpus": 0})
        assert ending.outcome == "finished", ending.message
        tidy()
        history = read_metadata(own / "latest.safetensors")["history"]
        records = [{key: value for key, value in record.items() if key not in CLOCKS} for record in history]
        found[name] = {"best": sha256(own / "best.safetensors"), "records": records}
    done(found)


def in_a_new_process(configs: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    queue: Any = context.SimpleQueue()
    process = context.Process(target=in_turn, args=(dict(configs), folder, queue.put))
    process.start()
    process.join()
    assert process.exitcode == 0
    found: dict[str, Any] = queue.get()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("configs", [PLAIN, {**PLAIN, **OPTIONS}], ids=["methods", "options"])
def test_every_trial_is_the_same_in_a_used_process_as_in_a_new_one(tmp_path: Path, configs: dict[str, Any]) -> None:
    used = in_a_new_process(configs, tmp_path / "used")
    names = list(configs) if configs is PLAIN else list(OPTIONS)
    for name in names:
        new = in_a_new_process({name: configs[name]}, tmp_path / f"new {name}")
        assert used[name] == new[name], name
