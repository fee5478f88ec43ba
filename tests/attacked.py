"""A network of five classes, a batch of images that some attacks fool, and quick settings: for tests of attacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainers.attacks import EVAL_ATTACKS, Case

CLASSES = 5
QUICK: dict[str, dict[str, Any]] = {  # settings that a test can wait for
    "fgsm": {},
    "pgd": {"steps": 5, "restarts": 2},
    "cw": {"steps": 5, "restarts": 2},
    "mi-fgsm": {"steps": 5},
    "di-fgsm": {"steps": 5},
    "ti-fgsm": {"steps": 5, "kernel_size": 3},
    "apgd-ce": {"steps": 10, "restarts": 2},
    "apgd-dlr": {"steps": 10},
    "apgd-t": {"steps": 5},
    "square": {"queries": 30},
    "transfer": {"attack": "pgd", "settings": {"steps": 5}},
    "apgd": {"steps": 5},
    "ensemble": {"steps": 5, "queries": 10},
    "aa-agft": {"steps": 5},
    "autoattack": {},
}


def rows(*, keyed: bool = False) -> Any:
    """Every attack in each of its norms; `keyed`: only those that promise not to depend on the batch."""
    found = []
    for name, row in EVAL_ATTACKS.items():
        for norm in row.norms:
            if row.keyed or not keyed:
                marks = pytest.mark.slow if name == "autoattack" else ()
                parameters = row.model_validate(QUICK[name])
                found.append(pytest.param(parameters, norm, id=f"{name} {norm}", marks=marks))
    return pytest.mark.parametrize(("parameters", "norm"), found)


def network(classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, classes)).eval()
        with torch.no_grad():
            net[4].weight.mul_(8)
    return net


def case(
    norm: str = "linf",
    *,
    number: int = 8,
    strength: float = 0.04,
    classes: int = CLASSES,
    model: nn.Module | None = None,
) -> Case:
    """Images with the labels that the model gives them; the radius fools some of them and not others.

    The surrogate is the model itself, or the network where another model is given.
    """
    images = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[0], images[1] = 0, 1  # corners of the cube of pixels
    net = network(classes)
    model = net if model is None else model
    eps = strength if norm == "linf" else strength * 192**0.5 / 2
    return Case(model, images, model(images).argmax(1), torch.arange(number) + 40, eps, classes, norm, 0, net)  # type: ignore[arg-type]
