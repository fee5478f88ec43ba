"""Small real objects for the trainers' tests: a random open_clip model, a linear one with closed forms, and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers import data
from trainers.data.base import DatasetEntry, ImageSet
from trainers.model.build import Description
from trainers.schema.attacks import PGD
from trainers.schema.suite import AttackAt, Suite
from trainers.schema.training import AttackConfig, DataConfig, OptimizerConfig, TrainConfig
from trainers.table import Table
from trainers.testing.towers import MODEL_CFG, RESNET_CFG, small_clip, small_resnet_clip
from trainers.trial_config import TrialConfig

__all__ = ["MODEL_CFG", "RESNET_CFG", "small_clip", "small_resnet_clip"]

torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first

CLASSES = ("red disc", "green ring", "blue bar", "grey dot")


class Flat(nn.Module):
    """An image encoder that is a matrix: embeddings = images flattened @ weight.T."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.image_size = round((weight.shape[1] // 3) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


class FlatCLIP(nn.Module):
    """What RobustCLIP needs of a CLIP, around a matrix [D, 3 * S * S]; no normalisation of pixels."""

    def __init__(self, weight: Tensor, *, scale: float = 100.0) -> None:
        super().__init__()
        self.visual = Flat(weight)
        self.logit_scale = nn.Parameter(torch.tensor(scale).log())
        self.__dict__["description"] = Description("flat", {}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})


def image_set(name: str, number: int, *, seed: int = 0, size: int = 16) -> ImageSet:
    """Four classes of noisy tints; class sizes 4 : 3 : 2 : 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([4.0, 3.0, 2.0, 1.0]), number, replacement=True, generator=generator)
    tint = torch.tensor([[0.7, 0.3, 0.3], [0.3, 0.7, 0.3], [0.3, 0.3, 0.7], [0.5, 0.5, 0.5]])[labels]
    images = tint[:, :, None, None] + 0.3 * (torch.rand(number, 3, size, size, generator=generator) - 0.5)
    return ImageSet(name, (images * 255).round().to(torch.uint8), labels, CLASSES, ("a {}.", "photo of a {}."))


SMALL_SETS = {"small-train": (96, 1), "small-dev": (50, 2), "small-other": (41, 3), "small-large": (640, 4)}


def small_rows() -> dict[str, DatasetEntry]:
    """The small image sets' rows of DATASETS."""
    return {
        name: DatasetEntry(name, lambda n=name, k=number, s=seed: image_set(n, k, seed=s), number, 4, "drawn", "")
        for name, (number, seed) in SMALL_SETS.items()
    }


def datasets_with(rows: Mapping[str, DatasetEntry]) -> Table[DatasetEntry]:
    """The table of datasets, with these rows too."""
    return Table(data.DATASETS.kind, data.DATASETS.group, {**data.DATASETS.rows, **rows})


@contextmanager
def small_sets() -> Iterator[None]:
    """The small image sets are in DATASETS: around a test, or in a process that trains on them; then as before."""
    before, loaded = data.DATASETS, dict(data._LOADED)
    data.DATASETS = datasets_with(small_rows())
    try:
        yield
    finally:
        data.DATASETS = before
        data._LOADED.clear()
        data._LOADED.update(loaded)


def pgd_suite(
    *datasets: str, eps: tuple[str | float, ...], steps: int, samples: int | None = None, **changes: Any
) -> Suite:
    """PGD with steps of a quarter of the radius on these sets."""
    attack = AttackAt.model_validate({"attack": PGD(steps=steps), "eps": eps, "samples": samples})
    return Suite(name="dev", datasets=datasets, attacks=(attack,), **changes)


def trial(weights: Path, **changes: Any) -> TrialConfig:
    """A run of three updates an epoch on the model in `weights`."""
    fields: dict[str, Any] = {
        "model": {"arch": "small-clip", "pretrained": str(weights)},
        "method": {"name": "agft", "label_weight": 0.5},
        "attack": AttackConfig(eps="4/255"),
        "data": DataConfig(train="small-train"),
        "train": TrainConfig(epochs=4, batch_size=40, optimizer=OptimizerConfig(lr=3e-3), threads=1),
        "evaluate": pgd_suite("small-dev", "small-other", eps=("2/255", "8/255"), steps=2),
        "seed": 3,
    }
    return TrialConfig.model_validate({**fields, **changes})
