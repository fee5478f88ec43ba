"""The Gaussian process as a sampler: what it sees of a trial, what it proposes, and where `auto` takes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from study.plan.study import remarks
from study.search.gaussian import _stepped, as_results, taken
from study.search.proposals import Proposer, given
from tests.study.search.test_samplers import PLAIN, bowl, ended, searched, searched_rows, spec_of

NUMBERS = {path: entry for path, entry in PLAIN.items() if "choices" not in entry}
FLOOR = {"goal": {"metric": "robust_accuracy", "subject_to": {"clean_accuracy": ">= 0.5"}}}


def gp_of(search: dict[str, Any] = NUMBERS, **more: Any):
    spec = spec_of("tpe", search, **more)
    return spec.model_copy(update={"sampler": spec.sampler.model_copy(update={"name": "gp"})})


def test_a_proposal_follows_from_the_trials_before_it_and_from_what_is_pending():
    spec = gp_of()
    kept, again = (searched_rows(spec, bowl, 6, anew=anew, lag=1) for anew in (False, True))
    assert kept == again
    assert len({tuple(row.params.values()) for row in kept.values()}) == 6
    random = searched(spec_of("random", NUMBERS), bowl, 6)
    assert [row.params for row in kept.values()][:4] == random[:4], "draws, until three are known"
    assert kept[5].params != random[5]


def test_a_stopped_trial_counts_with_what_it_reached_and_a_failed_one_as_the_worst():
    spec = gp_of(**FLOOR)
    proposer = Proposer(spec, spec.goal.at({"clean_accuracy": 0.5}), given(spec, spec.dimensions()))
    rows = searched_rows(spec_of("random", NUMBERS), bowl, 5)
    for number, (state, robust, clean) in enumerate(
        [
            ("complete", 0.3, 0.6),
            ("pruned", 0.2, 0.4),
            ("failed", 0.9, 0.9),
            ("running", 0.9, 0.9),
            ("dropped", 0.9, 0.9),
        ]
    ):
        own = ended(rows[number], state, robust_accuracy=robust, clean_accuracy=clean, feasible=clean >= 0.5)  # type: ignore[arg-type]
        rows[number] = replace(own, epochs=()) if state == "running" else own
    space = {dimension.path: dimension.distribution for dimension in spec.dimensions()}
    found = list(as_results([proposer.frozen(row) for row in rows.values()], space))
    assert [each.state for each in found] == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert [each.values for each in found] == [[0.3], [0.2], [0.2], None]
    missed = [dict(each.constraints) for each in found[:3]]
    assert missed == [{"clean_accuracy": pytest.approx(each)} for each in (-0.1, 0.1, 0.1)]
    assert [each.params for each in found] == [rows[number].params for number in range(4)]


def test_numbers_are_proposed_in_thousandths_of_their_ranges():
    rates = FloatDistribution(1e-5, 1e-1, log=True)
    assert _stepped(rates, 1.0000001e-3) == _stepped(rates, 0.9999999e-3) == pytest.approx(1e-3)
    assert _stepped(FloatDistribution(0.0, 2.0), 1.0009) == pytest.approx(1.0)
    assert _stepped(FloatDistribution(0.0, 2.0), 2.0) == 2.0
    assert _stepped(FloatDistribution(0.0, 1.0, step=0.25), 0.25) == 0.25
    assert _stepped(IntDistribution(1, 9000), 4321) == 4321


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        (NUMBERS, "gp"),
        (PLAIN, "tpe"),
        (NUMBERS | {"train.optimizer.momentum": {"low": 0.0, "high": 0.9}}, "gp"),
        ({f"method.{each}": {"low": 0.1, "high": 1.0} for each in ("clean_weight", "scale_ratio")}, "gp"),
    ],
    ids=["numbers", "a choice", "four numbers", "two numbers"],
)
def test_auto_is_the_gaussian_process_where_all_are_numbers_and_tpe_elsewhere(search, expected):
    spec = spec_of("auto", search)
    assert taken(spec, spec.dimensions()) == expected
    assert taken(spec, spec.dimensions() * 5) == "tpe", "too many"
    assert f"sampler.name: auto is {expected} in this space" in remarks(spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    "front", [{}, {"goal": {"metrics": ["clean_accuracy", "robust_accuracy"]}}], ids=["one", "two"]
)
def test_floors_keep_the_search_out_of_the_infeasible_region(front):
    """Robust accuracy rises with x, the floor holds for x up to 0.4."""
    search = {
        "method.clean_weight": PLAIN["method.clean_weight"],
        "train.optimizer.momentum": {"low": 0.0, "high": 0.9},
    }
    spec = gp_of(search, **front)

    def late_feasible(floors: dict[str, float]) -> float:
        proposer, rows, xs = Proposer(spec, spec.goal.at(floors), ()), {}, []
        for number in range(24):
            proposal = proposer.propose(rows, number, 1)
            x = proposal.params["method.clean_weight"]
            clean = 0.9 - x
            feasible = clean >= floors.get("clean_accuracy", 0)
            rows[number] = ended(proposal, robust_accuracy=x**2, clean_accuracy=clean, feasible=feasible)
            xs.append(x)
        return sum(x <= 0.41 for x in xs[12:]) / 12

    assert late_feasible({"clean_accuracy": 0.5}) > 0.6
    assert late_feasible({}) < (0.7 if front else 0.4)


@pytest.mark.slow
def test_it_finds_more_than_random_search():
    def late(name: str, seed: int) -> float:
        spec = gp_of(seed=seed) if name == "gp" else spec_of(name, NUMBERS, seed=seed)
        return max(bowl(params) for params in searched(spec, bowl, 24))

    assert all(late("gp", seed) > late("random", seed) / 4 for seed in (1, 2)), "values are negative"


PROPOSE = """
import json
from tests.study.search.test_gaussian import gp_of
from tests.study.search.test_samplers import bowl, searched
print(json.dumps(searched(gp_of(), bowl, 12)))
"""


@pytest.mark.slow
def test_another_kind_of_processor_proposes_the_same():
    """Older instruction sets of the two libraries that compute: their sums round in another order."""
    kinds: list[dict[str, str]] = [
        {},
        {"ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Nehalem", "MKL_CBWR": "COMPATIBLE"},
        {"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "2"},
    ]
    found = [
        subprocess.run(
            [sys.executable, "-c", PROPOSE], env={**os.environ, **kind}, capture_output=True, check=True
        ).stdout
        for kind in kinds
    ]
    assert json.loads(found[0]) == json.loads(found[1]) == json.loads(found[2])
