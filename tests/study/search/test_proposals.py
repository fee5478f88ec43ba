"""The Optuna study that a proposal is made in: it shares its trials with the next one, and changes none of them."""

from __future__ import annotations

import copy
from dataclasses import replace

import optuna
import pytest

from study.search import proposals
from study.search.proposals import Proposer, pending
from study.spec.config import SAMPLERS
from tests.bench.search_replay import replay, seen, specification
from tests.support.landscapes import COLOR_SHAPES
from trainers.schema.training import Goal

GOAL = Goal(metric="robust_accuracy", at_least={"clean_accuracy": 0.5})
TABLE = COLOR_SHAPES.table()
LEARNING = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("gp", "auto")))
    for name, row in SAMPLERS.items()
    if not row.exhaustive
]


def searched(name: str) -> tuple:
    """A search of 30 trials: state, epochs and parameters of each."""
    parts = {"sampler": {"name": name, "population": 6}, "scheduler": {"name": "asha"}, "budget": {"trials": 30}}
    return replay(
        specification("random", 0, **parts), TABLE.between, GOAL, fallback=0.1, workers=3, start_up=2.0,
        horizon=float("inf"), lag=4,
    ).trials  # fmt: skip


@pytest.mark.parametrize("name", LEARNING)
def test_proposals_are_those_of_a_study_that_holds_copies(name, monkeypatch):
    shared = searched(name)
    monkeypatch.setattr(proposals, "_Memory", optuna.storages.InMemoryStorage)
    assert searched(name) == shared


@pytest.mark.parametrize("name", LEARNING)
def test_a_proposal_leaves_the_trials_that_it_is_made_from_as_they_were(name):
    spec = specification("random", 0, sampler={"name": name, "population": 4, "startup_trials": 2})
    proposer, rows = Proposer(spec, GOAL, ()), {}
    for number in range(12):
        before = copy.deepcopy(proposer._frozen)
        row = pending(proposer.propose(rows, number, 3))
        rows[number] = replace(row, state="complete", epochs=seen(TABLE.between(row.params), GOAL).records)
        assert {key: vars(proposer._frozen[key]) for key in before} == {k: vars(each) for k, each in before.items()}
