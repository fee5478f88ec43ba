"""What every sampler, stopping rule and selection rule must do, as functions that need no pytest.

`..._contract(name)`, of a name of the table, gives the checks by name; see `trainers.testing` for the other kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from study.search.proposals import Proposer, given, pending
from study.search.stopping import rungs
from study.spec.config import SAMPLERS, STOPPING, SamplerConfig, SchedulerConfig, StudyConfig
from study.spec.promotion import SELECTION, Given, parse_preference
from study.store.rows import Proposal, TrialRow
from trainers.schema.records import EpochRecord
from trainers.schema.training import Goal

TRIALS = 12
Contract = dict[str, Callable[[], None]]


def _spec(**parts: Any) -> StudyConfig:
    """A small study; a sampler that tries all combinations gets choices alone."""
    space: dict[str, Any] = {
        "method.scale_ratio": {"low": 0.1, "high": 0.9},
        "train.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "train.batch_size": {"choices": [16, 32, 64]},
    }
    if "sampler" in parts and SAMPLERS[parts["sampler"]["name"]].exhaustive:
        space = {"train.batch_size": {"choices": [8 * (1 + place) for place in range(TRIALS)]}}
    sets = {"dev": ["tiny-shapes"], "confirm": ["tiny-colors"], "final": ["tiny-letters"]}
    return StudyConfig.model_validate(
        {
            "name": "contract",
            "model": {"arch": "tiny-clip", "pretrained": "bundled"},
            "method": {"name": "agft"},
            "data": {"train": "tiny-color-shapes", **sets},
            "search": space,
            "warm_starts": [],
            "budget": {"trials": TRIALS},
            **parts,
        }
    )


GOAL = Goal(at_least={"clean_accuracy": 0.3})
LAG = 3


def _ended(proposal: Proposal, state: str = "complete") -> TrialRow:
    """A trial with accuracies that depend on its number alone."""
    value = (7 * proposal.number % 5) / 5
    measured: dict[str, Any] = {"epoch": 1, "clean_accuracy": 1 - value, "robust_accuracy": value, "feasible": True}
    best = {f"best_{name}": found for name, found in measured.items()}
    idle = {"timestamp_ms": 0, "steps": 0, "train_loss": 0.0, "parts": {}, "lr": 0.0, "grad_norm": 0.0, "datasets": {},
            "train_seconds": 0.0, "eval_seconds": 0.0, "images_per_second": 0.0}  # fmt: skip
    record = EpochRecord.model_validate(idle | measured | best)
    return replace(pending(proposal), state=state, epochs=(record,))


def _proposed(spec: StudyConfig, states: Callable[[int], str] = lambda number: "complete") -> dict[int, TrialRow]:
    proposer = Proposer(spec, GOAL, given(spec, spec.dimensions()))
    rows: dict[int, TrialRow] = {}
    for number in range(TRIALS):
        rows[number] = _ended(proposer.propose(rows, number, LAG), states(number))
    return rows


def what_it_proposes_is_inside_the_space(name: str) -> None:
    spec = _spec(sampler={"name": name, "startup_trials": 3, "population": 4})
    for row in _proposed(spec).values():
        assert set(row.params) == set(spec.search)
        assert all(dimension.holds(row.params[dimension.path]) for dimension in spec.dimensions())


def a_proposal_follows_from_what_it_knows(name: str) -> None:
    """Made again by somebody who has been away, and beside what the trials that are pending report meanwhile."""
    spec = _spec(sampler={"name": name, "startup_trials": 3, "population": 4})
    rows = _proposed(spec, lambda number: "pruned" if number % 4 == 1 else "complete")
    for number, row in rows.items():
        before = {other: rows[other] for other in range(number)}
        meanwhile = {
            other: replace(each, state="failed", epochs=()) if other >= number - LAG else each
            for other, each in before.items()
        }
        for state in (before, meanwhile):
            again = Proposer(spec, GOAL, given(spec, spec.dimensions())).propose(state, number, LAG)
            assert (again.params, dict(again.memory)) == (row.params, row.memory)


def it_says_what_it_reads_and_how_it_goes_about_it(name: str) -> None:
    row, spec = SAMPLERS[name], _spec(sampler={"name": name})
    assert set(row.reads) <= set(SamplerConfig.model_fields) - {"name"}
    assert row.words(spec.sampler).startswith(f"{name}: ")
    assert row.blind is None or row.blind(spec.sampler) >= 1
    assert all(": " in remark for remark in row.remarks(spec))


def sampler_contract(name: str) -> Contract:
    """The checks by name."""
    checks = (
        what_it_proposes_is_inside_the_space,
        a_proposal_follows_from_what_it_knows,
        it_says_what_it_reads_and_how_it_goes_about_it,
    )
    return {check.__name__: partial(check, name) for check in checks}


def its_rungs_are_epochs_before_the_last_in_order(name: str) -> None:
    for epochs in (1, 2, 7, 30):
        found = rungs(SchedulerConfig(name=name), epochs)
        assert list(found) == sorted(set(found))
        assert all(1 <= epoch < epochs for epoch in found)


def the_best_trial_goes_on_and_every_verdict_has_a_reason(name: str) -> None:
    for count in range(20):
        others = [place / 20 for place in range(count)]
        for own in (0.0, 0.5, 1.0):
            word, reason = STOPPING[name].verdict(SchedulerConfig(name=name), own, others)
            assert word in ("continue", "stop")
            assert reason
            assert word == "continue" or own < 1, "nobody is better than 1"
        assert others == [place / 20 for place in range(count)]


def it_says_which_settings_it_reads(name: str) -> None:
    row = STOPPING[name]
    assert set(row.reads) <= set(SchedulerConfig.model_fields) - {"name"}
    assert all(": " in remark for remark in row.remarks(_spec(scheduler={"name": name})))


def stopping_contract(name: str) -> Contract:
    """The checks by name."""
    checks = (
        its_rungs_are_epochs_before_the_last_in_order,
        the_best_trial_goes_on_and_every_verdict_has_a_reason,
        it_says_which_settings_it_reads,
    )
    return {check.__name__: partial(check, name) for check in checks}


FRONT: list[dict[Any, float]] = [
    {"robust_accuracy": robust, "clean_accuracy": clean} for robust, clean in ((0.3, 0.9), (0.5, 0.8), (0.55, 0.6))
]


def what_it_reads_is_weights_and_floors(name: str, example: Given) -> None:
    found = parse_preference(example)
    assert found.rule == name
    assert SELECTION[name].form
    assert min(found.weights.values()) >= 0
    assert sum(found.weights.values()) > 0


def a_points_score_does_not_depend_on_the_order(name: str, example: Given) -> None:
    scores = SELECTION[name].scores
    if scores is not None:
        forwards, backwards = list(scores(FRONT)), list(scores(FRONT[::-1]))
        assert len(forwards) == len(FRONT)
        assert forwards == backwards[::-1]


def selection_contract(name: str, example: Given) -> Contract:
    """The checks by name; `example`: a preference as the rule reads it."""
    checks = (what_it_reads_is_weights_and_floors, a_points_score_does_not_depend_on_the_order)
    return {check.__name__: partial(check, name, example) for check in checks}
