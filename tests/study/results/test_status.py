"""What a terminal is told about studies, from the store alone."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.console import Console

from study.cli.tables import advice, attempts_table, studies_table, trials_table
from study.console import wide_console
from study.results.status import ALL_DONE, eta_seconds, live_state, study_status
from study.spec.config import StudyConfig
from study.store import tables as t
from study.store.rows import Attempt, StudyRow, TrialRow
from study.store.store import StudyStore
from tests.support.studies import synthetic_study
from trainers.schema.records import Measurement

BASELINE = Measurement(clean_accuracy=0.7, robust_accuracy=0.2, datasets={})


def study(*, budget: int = 10, state: str = "running", lease: float = 20.0, token: int = 3) -> StudyRow:
    spec = StudyConfig.model_validate(
        {"name": "s", "method": {"name": "agft"}, "budget": {"trials": budget},
         "data": {"train": "tiny-color-shapes", "dev": ["tiny-shapes"], "confirm": ["tiny-colors"],
                  "final": ["tiny-letters"]}}
    )  # fmt: skip
    return StudyRow(
        name="s", spec=spec, spec_hash="", desired="run", state=state, created_ms=0, driven_seconds=7200.0,
        token=token, lease_owner="node-7|123|1.00|m.b.1" if lease else None, lease_seconds=lease, baseline=BASELINE,
        provenance=None,
    )  # fmt: skip


def trial(number: int, state: str, *attempts: Attempt) -> TrialRow:
    return TrialRow(number=number, state=state, params={}, config={}, started_ms=0, attempts=attempts)


def finished(number: int, seconds: float, state: str = "complete") -> TrialRow:
    return trial(number, state, Attempt(3, 0, int(seconds * 1000), device_seconds=seconds, outcome=state))


def running(number: int, since: float) -> TrialRow:
    return trial(number, "running", Attempt(3, int(since * 1000)))


@pytest.mark.parametrize(
    ("state", "lease", "said"),
    [
        ("new", 0.0, "queued"), ("running", 20.0, "running"), ("running", -5.0, "interrupted"),
        ("running", 0.0, "interrupted"), ("paused", 0.0, "paused"), ("stopped", 0.0, "stopped"),
        ("finished", 0.0, "finished"), ("failed", 0.0, "failed"),
    ],
)  # fmt: skip
def test_states_are_those_that_a_person_understands(state, lease, said):
    assert live_state(study(state=state, lease=lease)) == said


def test_the_time_left_is_mean_duration_times_what_is_left_over_what_runs_side_by_side():
    trials = [finished(0, 100), finished(1, 140, "pruned"), running(2, 1000), running(3, 1000)]
    # 8 of 10 are left, 120 s each, two at a time, and nothing of the two that run is done yet
    assert eta_seconds(study(), trials, now=1000) == pytest.approx(8 * 120 / 2)
    assert eta_seconds(study(), trials, now=1030) == pytest.approx((8 * 120 - 2 * 30) / 2)
    assert eta_seconds(study(), trials, now=9000) == pytest.approx((8 * 120 - 2 * 120) / 2), "never more than a trial"


def test_the_time_left_is_unknown_while_nothing_is_done_or_nothing_runs():
    assert eta_seconds(study(), [running(0, 0)], now=50) is None
    assert eta_seconds(study(), [finished(0, 100)], now=50) is None
    lost = trial(0, "complete", Attempt(1, 0), Attempt(3, 5000, 9000))
    assert eta_seconds(study(), [lost, running(1, 0)], now=50) is None, "nobody knows when its first attempt ended"


def test_counts_are_of_this_driver_and_a_dropped_trial_counts_nowhere():
    trials = [finished(0, 9), finished(1, 9, "pruned"), finished(2, 9, "failed"), finished(3, 9, "dropped"),
              running(4, 0), trial(5, "running", Attempt(2, 0))]  # fmt: skip
    counts = study_status(study(), trials, now=10)["counts"]
    assert counts == {
        "done": 3,
        "running": 1,
        "queued": 6,
        "complete": 1,
        "stopped_early": 1,
        "failed": 1,
        "dropped": 1,
    }
    states = {row["number"]: row["state"] for row in study_status(study(), trials, now=10)["trials"]}
    assert (states[4], states[5]) == ("running", "unfinished"), "an attempt of an earlier driver does not run"
    paused = study_status(study(state="paused", lease=0.0), trials, now=10)
    assert "running" not in [row["state"] for row in paused["trials"]]
    assert study_status(study(state="stopped", lease=0.0), trials, now=10)["counts"]["queued"] == 0
    silent = study_status(study(lease=-40.0), trials, now=10)
    assert (silent["counts"]["running"], silent["counts"]["queued"]) == (0, 7)
    assert silent["eta_seconds"] is None
    assert silent["silent_seconds"] == 40.0


def test_a_repetition_is_beside_the_budget():
    again = dataclasses.replace(running(4, 0), rerun_of=0)
    trials = [finished(0, 9), finished(1, 9), again]
    found = study_status(study(budget=4), trials, now=9)
    assert (found["budget"], found["wanted"], found["counts"]["queued"]) == (4, 5, 2)
    assert found["eta_seconds"] == pytest.approx(9 * 3 - 9)
    dropped = dataclasses.replace(finished(4, 9, "dropped"), rerun_of=0)
    assert study_status(study(budget=4), [*trials[:2], dropped], now=9)["wanted"] == 4


def test_a_silent_driver_is_named_with_what_to_do():
    said = advice(study_status(study(lease=-40.0), [], now=10))
    assert "node-7 (process 123) has been silent for 40 s" in said
    assert "agft resume s" in said
    assert "agft submit FILE" in said
    assert "(process 123) is gone" in advice(
        study_status(study(lease=0.0), [], now=10) | {"driver": {"host": "node-7", "pid": 123}}
    )
    assert advice(study_status(study(), [], now=10)) == ""
    assert "agft resume s" in advice(study_status(study(state="paused", lease=0.0), [], now=10))


def test_a_finished_study_that_is_wanted_more_of_says_so():
    row = dataclasses.replace(study(budget=2, state="finished", lease=0.0), message=ALL_DONE)
    assert advice(study_status(row, [finished(0, 9), finished(1, 9)], now=10)) == ""
    assert "1 more" in advice(study_status(row, [finished(0, 9), finished(1, 9, "dropped")], now=10))
    spent = dataclasses.replace(row, message="the budget of 1 hours is used up")
    assert advice(study_status(spent, [finished(0, 9)], now=10)) == ""


def test_attempts_say_which_driver_how_long_and_how_it_ended():
    moved = trial(
        4, "running", Attempt(2, 0, None, 60.0, None, {"hostname": "node-1"}), Attempt(3, 600_000, None, 30.0)
    )
    console = wide_console()
    with console.capture() as shown:
        console.print(attempts_table([moved], 3, 720.0, live=True))
    first, second = [line for line in shown.get().splitlines() if line.startswith("│")]
    assert "lost with its driver" in first
    assert "node-1" in first
    assert "running" in second
    assert " 2.0 " in second, "minutes since it started"


def test_the_table_of_a_study_in_life(tmp_path):
    store = synthetic_study(tmp_path)
    found = study_status(store.load(), store.trials(), time.time())
    console = wide_console()
    with console.capture() as shown:
        console.print(studies_table([found]))
    [line] = [line for line in shown.get().splitlines() if line.startswith("│ synthetic")]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    counts = found["counts"]
    assert cells[:3] == ["synthetic", "running", f"{counts['done']}/24"]
    assert counts["done"] + counts["running"] + counts["queued"] == 24
    assert cells[6] == str(counts["failed"]) == "2"
    assert cells[8] == f"{100 * found['best']['robust_accuracy']:.1f} %"
    assert found["best"]["robust_accuracy"] == max(
        row["robust_accuracy"] for row in found["trials"] if row["state"] == "complete" and row["feasible"]
    )


def agft(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "AGFT_", "RAY_"))}
    command = [sys.executable, "-c", "from study.cli.main import main; main()", *arguments]
    environment = {**clean, "AGFT_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_shows_all_studies_and_one_and_the_same_as_json(tmp_path):
    store = synthetic_study(tmp_path, name="studies")
    with store.engine.begin() as connection:
        connection.execute(sa.update(t.studies).values(lease_expires=time.time() - 70))
    everything = agft("status", home=tmp_path)
    assert everything.returncode == 0, everything.stderr
    assert "interrupted: studies" in everything.stdout
    one = agft("status", "studies", home=tmp_path)
    assert "best first (dev sets)" in one.stdout
    assert "attempts" in one.stdout
    assert "Nothing is lost" in " ".join(one.stdout.split())
    [found] = json.loads(agft("status", "studies", "--json", home=tmp_path).stdout)
    again = StudyStore(f"sqlite:///{tmp_path}/studies.db", "studies")
    expected = study_status(again.load(), again.trials(), time.time())
    assert {k: v for k, v in found.items() if k != "silent_seconds"} == json.loads(
        json.dumps({k: v for k, v in expected.items() if k != "silent_seconds"})
    )
    assert 70 <= found["silent_seconds"] < 200
    assert agft("status", "nothing", home=tmp_path).returncode == 2


def test_status_of_a_study_nobody_has_driven(tmp_path):
    row = dataclasses.replace(study(state="new", lease=0.0), baseline=None)
    found = study_status(row, [], now=0)
    assert (found["state"], found["best"], found["trials"], found["driver"]) == ("queued", None, [], None)
    assert found["counts"]["queued"] == 10


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_tables_in_a_terminal_of_any_width_keep_names_states_and_results(tmp_path, width):
    store = synthetic_study(tmp_path, name="a-study-of-mine", trials=3)
    study, rows = store.load(), store.trials()
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(studies_table([study_status(study, rows, time.time())], width=width))
    console.print(trials_table(study.spec, rows, study.goal, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    [of_study] = [line for line in lines if "a-study-of-mine" in line and "│" in line]
    best = max(row.last.best_robust_accuracy for row in rows if row.state == "complete")
    assert [word in of_study for word in ("running", f"{best:.1%}".replace("%", " %"), "node-a")] == [True] * 3
    assert sum("complete" in line or "pruned" in line for line in lines) == 3
    assert ("left out, for the terminal's width" in out.getvalue()) is (width < 200)
