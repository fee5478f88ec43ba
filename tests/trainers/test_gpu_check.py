"""`make gpu-check` runs without a GPU at toy sizes, keeps what it finds, and survives what a check does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import gpu_check

ROOT = Path(__file__).parents[2]
QUICK = ("machine", "limits_of_the_machine", "noise_is_the_cpus", "collectives", "evaluation")


def checked(out: Path, *only: str) -> dict[str, dict[str, object]]:
    """The record of these checks at toy sizes, or of all; each ran and found nothing wrong."""
    asked = [
        sys.executable,
        "tests/bench/gpu_check.py",
        "--small",
        "--out",
        str(out),
        *(["--only", *only] if only else []),
    ]
    ran = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    found: dict[str, dict[str, object]] = json.loads(out.read_text())["checks"]
    assert not [(name, gpu_check.faults(answers)) for name, answers in found.items() if gpu_check.faults(answers)]
    return found


def test_the_checks_that_need_no_training_pass_at_toy_sizes(tmp_path: Path) -> None:
    found = checked(tmp_path / "record.json", *QUICK)
    assert list(found) == list(QUICK)
    assert found["evaluation"]["equal in any place"] is True
    assert found["evaluation"]["attack step, micro-batch 2"]["limit"], "it came from the check before"


@pytest.mark.slow
def test_every_check_passes_at_toy_sizes(tmp_path: Path) -> None:
    found = checked(tmp_path / "record.json")
    assert found["a_run"]["resume equal"] is True
    assert "fp32 at 2" in found["step"]


CHILD = """
import sys, json, os, time
print("gpu-check: " + json.dumps({"check": "one", "done": False, "answers": {"figure": 1}}), flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "why"), [("os._exit(9)", "its process ended with code 9"), ("time.sleep(60)", "hung, and was ended")]
)
def test_a_check_that_takes_its_process_along_is_a_line_and_the_others_go_on(
    end: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, rest = tmp_path / "first.py", tmp_path / "rest.py"
    first.write_text(CHILD.replace("{end}", end))
    rest.write_text('print(\'gpu-check: {"check": "two", "done": true, "answers": {"seconds": 1}}\')')
    monkeypatch.setattr(gpu_check, "START_SECONDS", 5.0)
    scripts = iter([first, rest])
    popen = subprocess.Popen
    monkeypatch.setattr(gpu_check.subprocess, "Popen", lambda _, **how: popen([sys.executable, next(scripts)], **how))
    found = gpu_check.run({"one": 0.1, "two": 0.1}, small=True, until=gpu_check.time.monotonic() + 100)
    assert found == {"one": {"figure": 1, "FAILED": why}, "two": {"seconds": 1}}


def test_what_does_not_fit_into_the_time_is_left_out_and_said() -> None:
    found = gpu_check.run({"one": 50.0}, small=True, until=gpu_check.time.monotonic() + 10)
    assert found == {"one": {"left out": "may need 50 s, and there is not so much time left"}}


def test_the_table_shows_a_no_and_the_share_of_a_limit() -> None:
    rows = gpu_check.table({"step": {"bf16": {"value": 300.0, "unit": "TFLOP/s", "limit": 800.0}, "equal": False}})
    assert any("300 TFLOP/s  38% of 800" in row for row in rows)
    assert any(row.split() == ["equal", "NO"] for row in rows)
    assert gpu_check.faults({"equal": False, "same": True}) == ["equal"]
