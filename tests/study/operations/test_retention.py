"""What `agft gc` may take of a study: rules over stored rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from study.artifacts.checkpoints import _name, attempt_prefix, group_prefix
from study.operations.gc import addresses, spent
from study.store.rows import StudyRow, TrialRow
from tests.support.epochs import weights
from tests.support.studies import synthetic_study
from trainers.schema.records import At

BASE = "s3://agft/studies/x/trials"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyRow, list[TrialRow]]:
    store = synthetic_study(tmp_path_factory.mktemp("retention"), trials=24)
    trials = [
        replace(t, best=weights(place(t.number, "best")), latest=weights(place(t.number, "latest")))
        for t in store.trials()
    ]
    return store.load(), trials


def place(number: int, role: str, token: int = 1) -> str:
    return f"{group_prefix(attempt_prefix('agft', 'x', number, token), 1)}/{_name(role, At(3, 2), '0' * 64)}"


def objects(trials: list[TrialRow]) -> list[tuple[str, int]]:
    return [(place(t.number, role), 10) for t in trials for role in ("best", "latest")]


def test_every_finished_trial_keeps_its_best_weights_and_loses_its_state(stored):
    study, trials = stored
    found = spent(study, trials, objects(trials), set(), top=None)
    assert {each.place for each in found} == {place(t.number, "latest") for t in trials if t.finished}
    assert any(not t.finished for t in trials)


def test_top_keeps_the_best_and_the_pareto_front(stored):
    study, trials = stored
    gone = {each.place for each in spent(study, trials, objects(trials), set(), top=2)}
    kept = {t.number for t in trials if t.finished and place(t.number, "best") not in gone}
    from study.results.ranking import pareto_front, ranked

    order = ranked(trials, study.spec.goal.resolve(study.baseline))
    assert kept == {t.number for t in [*order[:2], *pareto_front(trials)]}
    assert len(kept) < sum(t.finished for t in trials)
    assert not gone & {place(t.number, role) for t in trials if not t.finished for role in ("best", "latest")}


def test_what_something_points_at_stays_whatever_the_rule(stored):
    study, trials = stored
    done = next(t for t in trials if t.finished)
    pointed = {place(done.number, "best"), f"{BASE}/{done.number}/a000001.001"}  # a file, and a folder
    gone = {each.place for each in spent(study, trials, objects(trials), pointed, top=1)}
    assert not gone & {place(done.number, "best"), place(done.number, "latest")}
    assert gone


def test_files_of_an_earlier_attempt_go_unless_the_trial_may_go_on(stored):
    study, trials = stored
    done = next(t for t in trials if t.finished)
    running = next(t for t in trials if not t.finished)
    old = [(place(t.number, "best", token=0), 7) for t in (done, running)]
    [only] = spent(study, trials, old, set(), top=None)
    assert (only.place, only.bytes, only.reason) == (
        place(done.number, "best", token=0),
        7,
        "of an earlier epoch or attempt",
    )


def test_nothing_else_of_a_study_is_touched(stored):
    study, trials = stored
    others = [("s3://agft/studies/x/logs/1.txt", 5), (place(999, "best"), 5), (f"{BASE}/1/a000001.001/notes.json", 5)]
    assert spent(study, trials, others, set(), top=1) == []


def test_addresses_are_found_wherever_they_are():
    spec = {"model": {"pretrained": "s3://b/studies/y/trials/1/"}, "list": [1, ["s3://b/k"], None], "n": "x"}
    assert addresses(spec) == {"s3://b/studies/y/trials/1", "s3://b/k"}
