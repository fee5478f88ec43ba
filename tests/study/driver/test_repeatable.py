"""What a study finds is a function of its file, whoever is fast, slow or killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study.results.ranking import best_trial
from study.store.store import StudyStore
from tests.support.light import light_study
from tests.support.worlds import run_world

WORLDS = 20
STUDY: dict[str, Any] = {
    "lag": 3, "budget": {"trials": 10}, "sampler": {"name": "tpe", "startup_trials": 3},
    "scheduler": {"name": "asha", "grace_fraction": 0.3, "reduction_factor": 2, "min_trials": 2, "finish": 1},
}  # fmt: skip


def test_one_file_finds_the_same_in_twenty_worlds(tmp_path: Path) -> None:
    spec = light_study("same", **STUDY)
    runs = [run_world(f"sqlite:///{tmp_path}/{seed}.db", spec, seed, slots=2 + seed % 3) for seed in range(WORLDS)]
    assert all(run == runs[0] for run in runs)
    states = [trial["state"] for trial in runs[0]]
    assert {"complete", "pruned"} == set(states), "something was stopped"
    assert [trial["number"] for trial in runs[0] if trial["finishing"]], "something was finished after all"
    attempts, best = [], set()
    for seed in range(WORLDS):
        store = StudyStore(f"sqlite:///{tmp_path}/{seed}.db", "same")
        goal, rows = store.load().goal, store.trials()
        assert goal is not None
        attempts.append([len(row.attempts) for row in rows])
        champion = best_trial(rows, goal)
        best.add(champion and champion.number)
    assert len(best) == 1
    assert len({tuple(each) for each in attempts}) > WORLDS / 2, "the worlds were not the same"


@pytest.mark.parametrize(("sampler", "rule"), [("cmaes", "median"), ("nsga2", "none"), ("qmc", "asha")])
def test_other_samplers_and_rules_find_the_same_in_three_worlds(tmp_path: Path, sampler: str, rule: str) -> None:
    settings = {"name": sampler, **({"startup_trials": 3} if sampler == "cmaes" else {})}
    settings |= {"population": 4} if sampler in ("cmaes", "nsga2") else {}
    spec = light_study("same", **{**STUDY, "sampler": settings, "scheduler": {"name": rule, "min_trials": 2}})
    runs = [run_world(f"sqlite:///{tmp_path}/{seed}.db", spec, seed) for seed in range(3)]
    assert runs[0] == runs[1] == runs[2]
