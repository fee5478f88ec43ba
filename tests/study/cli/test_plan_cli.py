"""`agft plan`: a study, a suite, or one beside the other; and what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from study.cli.main import main

RECIPE = Path("study/recipes/demo.yaml")


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AGFT_HOME", str(tmp_path))


def invoked(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["plan", *arguments])
    return done.exit_code, " ".join(done.stdout.split()), done.stderr


def test_a_suite() -> None:
    code, text, _ = invoked("--suite", "tiny")
    assert code == 0
    assert "suite tiny, protocol strict" in text
    assert "hours: not known" in text


def test_a_study_says_its_passes() -> None:
    code, text, _ = invoked(str(RECIPE))
    assert code == 0
    assert "image passes a full trial 28.7 k to train, at most 22.1 k to evaluate promotion at most 129 k" in text


def test_a_suite_beside_a_studys_training() -> None:
    text = invoked(str(RECIPE), "--suite", "tiny")[1]
    assert "study demo" in text
    assert "one full trial of the study takes 28.7 k passes; this suite is expected to take 10.3 times as many" in text


def test_json_has_both() -> None:
    found = json.loads(invoked("--suite", "zero-shot-15", "--seconds-per-pass", "0.001", "--json")[1])
    assert found["study"] is None
    assert len(found["suite"]["rows"]) == 30
    assert found["suite"]["total"]["hours_expected"] > 0
    assert "hours_expected" not in json.loads(invoked("--suite", "tiny", "--json")[1])["suite"]["total"]
    assert json.loads(invoked(str(RECIPE), "--json")[1])["passes"]["training"] == 28_672


def test_flops_are_those_of_the_studys_encoder() -> None:
    text = invoked(str(RECIPE), "--suite", "tiny", "--tflops", "0.01")[1]
    assert "an assumption, nothing was measured" in text
    assert "and tiny-clip with 0.0" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "FILE or --suite: one is required"),
        (["--suite", "tinny"], "'tinny'"),
        (["--suite", "tiny", "--clean", "0.3"], "--robust: 0.4 is more than --clean 0.3"),
        (["--suite", "tiny", "--tflops", "10"], "--tflops: of which encoder? Name its --arch, or a study file"),
        (["--suite", "tiny", "--tflops", "10", "--arch", "ViT-B32"], "no such architecture; nearest: ViT-B-32"),
        (["--suite", "tiny", "--measure", "tiny-clap"], "--measure: tiny-clap"),
        ([str(RECIPE), "--tflops", "10"], "name a --suite"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], words: str) -> None:
    code, _, errors = invoked(*arguments)
    assert code == 2
    assert words in errors
    assert len(errors.splitlines()) == 1
