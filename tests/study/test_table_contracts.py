"""Every row of the smaller tables keeps the contract that rows of other packages are held to as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from study.spec.config import SAMPLERS, STOPPING
from study.spec.promotion import SELECTION
from study.testing import Contract, sampler_contract, selection_contract, stopping_contract
from trainers.data import DATASETS
from trainers.data.drawn.datasets import TINY_DATASETS
from trainers.data.table import FILE_DATASETS
from trainers.schema.checks import CHECKS
from trainers.testing.checks import check_contract
from trainers.testing.datasets import dataset_contract

PREFERENCES = {"weights": "robust=0.7,clean=0.3", "max": "max robust with clean >= clip - 0.05"}


def contracts() -> dict[str, Callable[[], None]]:
    found: dict[str, Contract] = {name: sampler_contract(name) for name in SAMPLERS}
    found |= {name: stopping_contract(name) for name in STOPPING}
    found |= {name: selection_contract(name, PREFERENCES[name]) for name in SELECTION}
    found |= {name: dataset_contract(DATASETS[name]) for name in (*TINY_DATASETS, *FILE_DATASETS)}
    found |= {name: check_contract(check) for name, check in CHECKS.items()}
    return {f"{name} {what}": check for name, contract in found.items() for what, check in contract.items()}


CONTRACTS = contracts()
SLOW = ("gp what_it_proposes_is_inside_the_space", "gp a_proposal_follows_from_what_it_knows")  # 0.5 s a proposal


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, check in CONTRACTS.items()],
)
def test_every_row_keeps_its_contract(check: Callable[[], None]) -> None:
    check()
