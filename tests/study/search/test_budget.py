"""What is used up stays used up, whoever drives."""

from __future__ import annotations

from study.search.stopping import used_up
from study.spec.config import BudgetConfig
from study.store.rows import Attempt, TrialRow


def row(*attempts: Attempt) -> TrialRow:
    return TrialRow(0, "running", {}, {}, started_ms=0, attempts=attempts)


def spent(budget: dict, *rows: TrialRow, driven: float = 0.0, running: float = 0.0, gpus: bool = True) -> str:
    return used_up(
        BudgetConfig(trials=1, **budget), rows, driven_seconds=driven, running_seconds=running, token=2,
        counts_gpus=gpus,
    )  # fmt: skip


def test_hours_are_those_of_all_drivers():
    assert spent({"hours": 2}, driven=7199) == ""
    assert spent({"hours": 2}, driven=7201) == "the budget of 2 hours is used up"


def test_gpu_hours_add_up_over_attempts_and_count_what_runs_once():
    before = Attempt(1, 0, ended_ms=1, device_seconds=1800)
    now = Attempt(2, 0, device_seconds=1000)  # runs: the driver's clock knows better than its last report
    assert spent({"gpu_hours": 1}, row(before, now), running=1790) == ""
    assert "1 GPU-hours" in spent({"gpu_hours": 1}, row(before, now), running=1801)
    ended = Attempt(2, 0, ended_ms=1, device_seconds=1000)
    assert "1 GPU-hours" in spent({"gpu_hours": 1}, row(before, ended), running=801)


def test_an_attempt_whose_driver_was_killed_counts_as_far_as_it_reported():
    lost = Attempt(1, 0, device_seconds=3601)
    assert "GPU-hours" in spent({"gpu_hours": 1}, row(lost))


def test_without_gpus_there_are_no_gpu_hours():
    assert spent({"gpu_hours": 1}, row(Attempt(1, 0, 1, 9999)), gpus=False) == ""


def test_no_budget_is_never_used_up():
    assert spent({}, row(Attempt(1, 0, 1, 1e9)), driven=1e9, running=1e9) == ""
