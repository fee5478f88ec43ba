"""Trials that end as no trial should: each is labelled, costs its place in the budget, and harms no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from optuna.trial import TrialState

from infra import storage
from study.artifacts.checkpoints import attempt_prefix
from study.audit.audit import audit
from study.store.archive import stored_of
from study.store.rows import TrialRow
from study.store.store import StudyStore
from tests.support.hand import in_optuna
from tests.support.light import Plan, drive, light_cluster, light_study

if TYPE_CHECKING:
    from infra.services import Services

FAULTS = {
    1: "nothing", 2: "mute", 3: "raise", 4: "non-finite", 5: "out-of-memory", 6: "kill", 7: "kill-once", 8: "escape",
}  # fmt: skip
KINDS = {
    1: "bug", 2: "bug", 3: "bug", 4: "non-finite", 5: "out-of-memory", 6: "bug", 8: "bug",
}  # fmt: skip
TRIALS = 11
SPARE_BYTES = 4 << 30  # that others on this machine may take beside the trial of a test


@pytest.fixture(scope="module")
def odd(stack: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A study of 11 trials, 8 of which misbehave in their second epoch; every other one runs to its end."""
    folder: Path = tmp_path_factory.mktemp("odd")
    database, said = f"sqlite:///{folder}/studies.db", []
    scheduler = {"name": "none"}
    spec = light_study(
        "odd", scheduler=scheduler, budget={"trials": TRIALS}, sampler={"name": "tpe", "startup_trials": 3}
    )
    with light_cluster(stack, folder / "home") as cluster:
        outcome = drive(
            spec, Plan(faults=FAULTS), database=database, cluster=cluster, services=stack, say=said.append
        )  # fmt: skip
        yield {"outcome": outcome, "store": StudyStore(database, "odd"), "said": said}


@pytest.fixture
def rows(odd: dict[str, Any]) -> dict[int, TrialRow]:
    return {row.number: row for row in odd["store"].trials()}


def test_the_study_goes_on_to_the_end_of_its_budget_and_every_odd_trial_counts(odd, rows):
    assert odd["outcome"].state == "finished"
    assert set(rows) == set(range(TRIALS)), "a failed trial is neither repeated under another number nor left out"
    good = {number for number, row in rows.items() if row.state == "complete"}
    assert good == set(range(TRIALS)) - set(KINDS)
    assert all(rows[number].last.epoch == 6 for number in good)


def test_who_runs_out_of_memory_is_tried_once_more_with_nobody_beside_it(odd):
    said = odd["said"]
    first = next(
        at for at, line in enumerate(said) if line.startswith("trial   5  ran out of memory; it is tried once")
    )
    again = next(at for at, line in enumerate(said) if at > first and line.startswith("trial   5  continues"))
    ended = next(at for at, line in enumerate(said) if line.startswith("trial   5  failed (out-of-memory)"))
    assert first < again < ended
    assert not [line for line in said[again:ended] if line.startswith("trial") and not line.startswith("trial   5")]


def test_who_loses_its_process_is_started_again_and_not_for_ever(odd, rows):
    lines = {number: [x for x in odd["said"] if x.startswith(f"trial {number:>3}  interrupted")] for number in (6, 7)}
    assert {number: len(each) for number, each in lines.items()} == {6: 2, 7: 1}
    assert "its process was lost 3 times in a row without a new state" in rows[6].stop_reason
    assert "goes on in epoch 2" in lines[7][0]


def test_what_was_proposed_beside_them_follows(odd):
    told = audit(stored_of(odd["store"]))
    assert told.follows, told.line


@pytest.mark.parametrize("number", KINDS, ids=lambda number: FAULTS[number])
def test_a_failed_trial_says_what_kind_of_failure_it_was(odd, rows, number):
    row = rows[number]
    assert (row.state, row.failure_kind) == ("failed", KINDS[number])
    assert row.stop_reason, "a person is told why"
    assert any(line.startswith(f"trial {number:>3}  failed ({KINDS[number]})") for line in odd["said"])
    assert [attempt.outcome for attempt in row.attempts] == ["failed"]


def test_a_trial_whose_process_is_killed_once_goes_on_from_its_checkpoint(odd, rows):
    row = rows[7]
    assert row.state == "complete"
    assert [record.epoch for record in row.epochs] == [1, 2, 3, 4, 5, 6]
    processes = [attempt.provenance["pid"] for attempt in row.attempts]
    assert len(processes) == 1, "Tune started it again under the same driver"
    assert odd["said"].count(next(line for line in odd["said"] if line.startswith("trial   7  epoch 1/"))) == 1


def test_what_a_failed_trial_reached_stays_on_record(rows):
    for number in (3, 4, 5, 6, 8):
        assert [record.epoch for record in rows[number].epochs] == [1]
        assert storage.head(rows[number].latest.uri) is not None
    assert rows[1].epochs == ()
    assert rows[1].latest is None


def test_the_searcher_learns_nothing_from_failed_trials_and_keeps_no_zombie(odd, rows):
    known = in_optuna(odd["store"])
    states = {trial.number: trial.state for trial in known}
    assert states == {
        number: TrialState.FAIL if number in KINDS else TrialState.COMPLETE for number in range(TRIALS)
    }  # fmt: skip
    for trial in known:
        if trial.state == TrialState.FAIL:
            assert trial.values is None
            assert trial.user_attrs["agft.failure_kind"] == KINDS[trial.number]
        else:
            assert trial.value == rows[trial.number].last.best_robust_accuracy


def test_failed_trials_cost_what_they_used(rows):
    assert all(row.device_seconds > 0 for row in rows.values())
    assert rows[6].device_seconds > rows[1].device_seconds, "three starts cost more than one"


def test_nothing_of_a_trial_lies_outside_its_own_prefix(odd, rows, stack):
    study = odd["store"].load()
    for number, row in rows.items():
        for kept in (row.latest, row.best):
            if kept:
                assert kept.uri.startswith(attempt_prefix(stack.bucket, study.slug, number, study.token))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_trial_that_the_memory_monitor_kills_fails_alone(
    stack: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, said = f"sqlite:///{tmp_path}/studies.db", []
    spec = light_study("greedy", scheduler={"name": "none"}, budget={"trials": 4}, sampler={"name": "random"})
    memory = psutil.virtual_memory()
    monkeypatch.setenv(
        "RAY_memory_usage_threshold", f"{(memory.total - memory.available + SPARE_BYTES) / memory.total:.4f}"
    )
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    with light_cluster(stack, tmp_path / "home") as cluster:
        outcome = drive(
            spec, Plan(faults={1: "greedy"}), database=database, cluster=cluster, services=stack, say=said.append
        )
    rows = {row.number: row for row in StudyStore(database, "greedy").trials()}
    assert outcome.state == "finished"
    assert {number: row.state for number, row in rows.items()} == {
        0: "complete", 1: "failed", 2: "complete", 3: "complete"
    }  # fmt: skip
    assert [line for line in said if line.startswith("trial   1  ran out of memory; it is tried once more")]
    assert rows[1].failure_kind == "out-of-memory"
    assert "\n" not in rows[1].stop_reason
    assert "Ray" in rows[1].stop_reason
    assert not [line for line in said if "Traceback" in line]
