"""Small real objects for the trainers' tests: a random open_clip model, a linear one with closed forms, and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers import data
from trainers.data.base import DatasetEntry, ImageSet
from trainers.model.build import Description, build_clip
from trainers.schema.training import AttackConfig, DataConfig, EvalAttack, EvalConfig, OptimizerConfig, TrainConfig
from trainers.trial_config import TrialConfig

torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = ("red disc", "green ring", "blue bar", "grey dot")


def small_clip(seed: int = 0) -> nn.Module:
    """A random open_clip model of 30 k visual parameters, 16 x 16 pixels, logit scale 100."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = build_clip(Description("small-clip", MODEL_CFG, {}))
        with torch.no_grad():
            for parameter in clip.parameters():  # open_clip starts near 0, where all prompts look alike
                if parameter.ndim > 1:
                    parameter.mul_(3)
            clip.logit_scale.fill_(torch.log(torch.tensor(100.0)))
    return clip


RESNET_CFG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 64},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def small_resnet_clip(seed: int = 0) -> nn.Module:
    """A random CLIP with open_clip's ResNet, 32 x 32 pixels, running statistics unlike a fresh BatchNorm's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = build_clip(Description("small-resnet", RESNET_CFG, {}))
        with torch.no_grad():
            for name, value in clip.visual.state_dict().items():  # type: ignore[union-attr]
                if name.endswith("running_mean"):
                    value.normal_(0, 0.1)
                elif name.endswith(("running_var", "bn3.weight")):  # open_clip starts bn3 at 0: no block does anything
                    value.uniform_(0.5, 1.5)
            for parameter in clip.parameters():  # else all images look alike
                if parameter.ndim > 1:
                    parameter.mul_(2)
            clip.logit_scale.fill_(torch.log(torch.tensor(100.0)))
    return clip


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


def use_small_sets() -> None:
    """Add the small image sets to DATASETS; called in every process that trains on them."""
    rows = {
        name: DatasetEntry(name, lambda n=name, k=number, s=seed: image_set(n, k, seed=s), number, 4, "drawn", "")
        for name, (number, seed) in SMALL_SETS.items()
    }
    data.DATASETS = {**data.DATASETS, **rows}


def trial(weights: Path, **changes: Any) -> TrialConfig:
    """A run of three updates an epoch on the model in `weights`."""
    fields: dict[str, Any] = {
        "model": {"arch": "small-clip", "pretrained": str(weights)},
        "method": {"name": "agft", "label_weight": 0.5},
        "attack": AttackConfig(eps="4/255"),
        "data": DataConfig(train="small-train", dev=("small-dev", "small-other")),
        "train": TrainConfig(epochs=4, batch_size=40, optimizer=OptimizerConfig(lr=3e-3), threads=1),
        "evaluate": EvalConfig(attack=EvalAttack(eps=("2/255", "8/255"), steps=2)),
        "seed": 3,
    }
    return TrialConfig.model_validate({**fields, **changes})
