"""The mistakes that docs/inputs.md lists are answered with the very messages that it quotes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from study.cli.main import main
from study.cli.tables import failure_lines
from study.store.rows import TrialRow
from tests.support.study_files import minimal

PAGE = (Path(__file__).parents[3] / "docs" / "inputs.md").read_text()
SEARCH = "{{train.optimizer.lr: {}}}"
# Heading of the page -> (the blocks of a study file that make the mistake, or None for its whole text, the command).
MISTAKES: dict[str, dict[str, str]] = {
    "a radius in grey levels": {"attack": "{eps: 4}"},
    "a short name": {"search": "{train.lr: {low: 1e-4, high: 1e-3}}"},
    "a folder without its word": {
        "data": "{train: pics/train, dev: tiny-shapes, confirm: tiny-colors, final: tiny-letters}"
    },
    "a misspelt method": {"method": "{name: agtf, scale_ratoi: 0.4}"},
    "a set in two roles": {
        "data": "{train: tiny-color-shapes, dev: tiny-shapes, confirm: tiny-shapes, final: tiny-letters}"
    },
    "a key twice": {"seed": "1\nseed: 2"},
    "OpenAI's weights without QuickGELU": {"model": "{arch: ViT-B-32, pretrained: openai}"},
    "weights that are not there": {"model": "{arch: tiny-clip, pretrained: /data/weights.safetensors}"},
    "a pointer instead of weights": {"model": "{arch: tiny-clip, pretrained: pointer.safetensors}"},
    "weights that do not say which": {"model": "{arch: ViT-B-32, pretrained: state.pt}"},
}


def quoted(heading: str) -> list[str]:
    """The lines of the message that the page shows below a heading in bold."""
    found = re.search(rf"\*\*{re.escape(heading)}\*\*.*?```\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/inputs.md does not quote {heading!r}"
    return found[1].strip().splitlines()


@pytest.mark.parametrize("heading", MISTAKES)
def test_a_typical_mistake_is_answered_as_the_page_quotes_it(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGFT_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n")
    torch.save({"visual.conv1.weight": torch.ones(1), "token_embedding.weight": torch.ones(1)}, "state.pt")
    Path("study.yaml").write_text(minimal(**MISTAKES[heading]))
    done = CliRunner().invoke(main, ["validate", "study.yaml"])
    assert done.exit_code == 2
    shown = done.output.replace(f"{tmp_path}/", "/home/me/")
    for line in quoted(heading):
        assert line.removesuffix(" ...") in shown, shown


def test_status_says_in_a_line_why_a_trial_failed() -> None:
    raised = "Traceback (most recent call last):\n  File x\nValueError: pixels must be in [0, 1]"
    trials = [
        TrialRow(0, "complete", {}, {}, 0),
        TrialRow(1, "failed", {}, {}, 0, stop_reason=raised, failure_kind="bug"),
        TrialRow(2, "failed", {}, {}, 0, failure_kind="out-of-memory"),
    ]
    assert failure_lines(trials) == [
        "trial 1 failed, bug: ValueError: pixels must be in [0, 1]",
        "trial 2 failed, out-of-memory: nothing more is known",
    ]
