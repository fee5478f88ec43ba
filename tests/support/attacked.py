"""A network of five classes, a batch of images that some attacks fool, and quick settings: for tests of attacks."""

from __future__ import annotations

from typing import Any

import pytest

from trainers.attacks import EVAL_ATTACKS
from trainers.testing.attacks import CLASSES, case, network

__all__ = ["CLASSES", "QUICK", "case", "network", "rows"]

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
    "eot-pgd": {"steps": 5, "draws": 2},
    "spsa": {"steps": 5, "probes": 8},
    "adaptive": {"steps": 5, "draws": 2, "probes": 2},
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
