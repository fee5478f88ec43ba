"""The same trial on one and on two Ray Train workers: equal counts from equal weights, equal losses to rounding."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.support.small import pgd_suite
from trainers.objectives import METHODS
from trainers.schema.records import Answer, At, Decision, Report, Weights
from trainers.schema.training import AttackConfig, DataConfig, ModelConfig, TrainConfig
from trainers.trial_config import TrialConfig
from trainers.wiring import Restored, Wiring

pytestmark = pytest.mark.nested


def claim() -> int:
    return 1


def fetch(_group: int, _workdir: Path) -> Restored | None:
    return None


def keep(folder: Path, _group: int, path: Path, role: str, _at: At, _stored: int) -> Weights:
    shutil.copy(path, folder / f"{role}.safetensors")
    return Weights(uri=str(folder / f"{role}.safetensors"), sha256="0" * 64)


def report(told: Report) -> Answer:
    return Answer(Decision.CONTINUE, told.epoch)


def nothing() -> dict[str, Any]:
    return {}


def config(lr: float) -> dict[str, Any]:
    return TrialConfig(
        model=ModelConfig(arch="tiny-clip", pretrained="bundled"),
        method=METHODS["agft"](name="agft", clean_weight=0.5),
        attack=AttackConfig(eps=4 / 255),
        data=DataConfig(train="tiny-color-shapes"),
        train=TrainConfig(
            epochs=1, batch_size=64, samples_per_epoch=320, optimizer={"name": "sgd", "lr": lr}, warmup=0
        ),
        evaluate=pgd_suite(
            "tiny-shapes", "tiny-digits", eps=(2 / 255, 4 / 255), steps=3, samples=101
        ),  # odd: shares differ
    ).model_dump(mode="json")


def both(settings: dict[str, Any]) -> list[str]:
    """In a worker: one run that changes no weight (the rate vanishes in fp32), then one that does."""
    from trainers.worker import train_on_worker

    outcomes = []
    for name, plain in settings["configs"].items():
        folder = Path(settings["folder"]) / name
        wiring = Wiring(
            arrive=nothing, claim=claim, fetch=fetch, keep=partial(keep, folder), report=report, provenance=nothing
        )
        outcomes.append(train_on_worker({"config": plain, "wiring": wiring, "threads": 1, "gpus": 0}).outcome)
    return outcomes


def run(folder: Path, workers: int) -> dict[str, dict[str, Any]]:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trainers.model.weights import read_metadata

    configs = {"still": config(1e-12), "moving": config(1e-4)}
    for name in configs:
        (folder / name).mkdir(parents=True)
    trainer = TorchTrainer(
        both,
        train_loop_config={"configs": configs, "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=f"workers-{workers}", storage_path=str(folder / "ray")),
    )
    assert trainer.fit().return_value == ["finished", "finished"]
    return {name: read_metadata(folder / name / "latest.safetensors")["history"][-1] for name in configs}


def test_two_workers_count_as_one_and_learn_as_one(tmp_path, monkeypatch):
    from infra.cluster import cluster

    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["both"]))
    cluster.connect(num_cpus=2)
    try:
        one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    finally:
        cluster.disconnect()
    assert one["still"]["datasets"] == two["still"]["datasets"]  # integer counts, every set and radius
    assert all(score["total"] == 101 for scores in two["still"]["datasets"].values() for score in scores.values())
    for name in ("still", "moving"):
        # Equal weights: the sum's rounding. Moving weights: every update adds its own, and attacks take signs.
        limit = 1e-6 if name == "still" else 1e-4
        assert two[name]["train_loss"] == pytest.approx(one[name]["train_loss"], rel=limit)
        for part, value in one[name]["parts"].items():
            assert two[name]["parts"][part] == pytest.approx(value, rel=10 * limit)
    assert one["moving"]["train_loss"] != one["still"]["train_loss"]
