"""The same trial in this process and on two Ray Train workers: equal counts from equal weights, losses to rounding."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.support.small import pgd_suite
from trainers.model.weights import read_metadata
from trainers.objectives import METHODS
from trainers.schema.records import Answer, At, Decision, Report, Weights
from trainers.schema.training import AttackConfig, DataConfig, ModelConfig, TrainConfig
from trainers.training.loop import train
from trainers.training.run import LATEST
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


def configs(folder: Path) -> dict[str, Any]:
    for name in ("still", "moving"):
        (folder / name).mkdir(parents=True)
    return {"still": config(1e-12), "moving": config(1e-4)}


def last_records(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: read_metadata(path / LATEST)["history"][-1] for path in folder.iterdir()}


def alone(folder: Path) -> dict[str, dict[str, Any]]:
    for name, plain in configs(folder).items():
        train(TrialConfig.model_validate(plain), report=lambda _: Decision.CONTINUE, workdir=folder / name)
    return last_records(folder)


def on_two_workers(folder: Path, ray_folder: Path) -> dict[str, dict[str, Any]]:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        both,
        train_loop_config={"configs": configs(folder), "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="workers", storage_path=str(ray_folder)),
    )
    assert trainer.fit().return_value == ["finished", "finished"]
    return last_records(folder)


def test_two_workers_count_as_one_and_learn_as_one(tmp_path, monkeypatch):
    from infra.cluster import cluster

    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.cloudpickle.register_pickle_by_value(__import__(__name__, fromlist=["both"]))
    one = alone(tmp_path / "one")
    cluster.connect(num_cpus=2)
    try:
        two = on_two_workers(tmp_path / "two", tmp_path / "ray")
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
