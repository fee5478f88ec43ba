"""A network of five classes and a batch of images that some attacks fool, for the tests of evaluation attacks."""

from __future__ import annotations

import torch
from torch import nn

from trainers.attacks import Case

CLASSES = 5


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, CLASSES)).eval()
        with torch.no_grad():
            net[4].weight.mul_(8)
    return net


def case(norm: str = "linf", *, number: int = 8, strength: float = 0.04, model: nn.Module | None = None) -> Case:
    """Images with the labels that the model gives them; the radius fools some of them and not others."""
    images = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[0], images[1] = 0, 1  # corners of the cube of pixels
    model = network() if model is None else model
    eps = strength if norm == "linf" else strength * 192**0.5 / 2
    return Case(model, images, model(images).argmax(1), torch.arange(number) + 40, eps, CLASSES, norm, 0, network())  # type: ignore[arg-type]
