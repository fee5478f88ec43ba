"""What one person decides another one approves, beside the champion that the gates compared with, and nobody alone."""

from __future__ import annotations

import getpass
import json
import secrets
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.services import Services
from study.cli.main import main
from study.models.approval import hold
from study.models.head import Move, history, read_head
from tests.support.shipped import set_head, ship


def test_another_person_moves_the_champion_once_and_both_are_on_record(
    service_environment: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, name = service_environment.bucket, f"held-{secrets.token_hex(4)}"
    ship(bucket, name, tmp_path)
    ship(bucket, name, tmp_path, seed=1, champion=False)

    def approve(user: str, version: int, *options: str) -> tuple[int, str]:
        monkeypatch.setattr(getpass, "getuser", lambda: user)
        result = CliRunner().invoke(main, ["approve", name, str(version), "--reason", "read its card", *options])
        return result.exit_code, result.output

    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    hold(bucket, name, 2, 1, Move("promotion", "every gate is passed", {"study": "demo", "promotion": "0" * 16}))
    assert read_head(bucket, name)[0].champion == 1
    code, said = approve("ada", 2)
    assert (code, "ada@" in said, "another person has to approve" in said) == (2, True, True), said
    code, said = approve("grace", 3)
    assert (code, "waiting: 2" in said) == (2, True), said
    code, said = approve("grace", 2, "--json")
    assert code == 0, said
    assert json.loads(said[said.index("{") :])["champion"] == 2
    [move] = history(bucket, name)
    assert (move.action, move.why, move.champion, move.previous) == ("promotion", "every gate is passed", 2, 1)
    assert move.who.startswith("grace@")
    assert move.facts["decided_by"].startswith("ada@")
    assert (move.facts["approval"], move.facts["study"]) == ("read its card", "demo")
    code, said = approve("grace", 2)
    assert (code, "waiting: none" in said) == (2, True), said


def test_a_champion_that_came_in_between_sends_the_decision_back(
    service_environment: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, name = service_environment.bucket, f"held-{secrets.token_hex(4)}"
    for seed in range(3):
        ship(bucket, name, tmp_path, seed=seed, champion=seed == 0)
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    hold(bucket, name, 2, 1, Move("promotion", "every gate is passed", {"study": "demo"}))
    set_head(bucket, name, 3, 1)
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    result = CliRunner().invoke(main, ["approve", name, "2", "--reason", "as agreed"])
    assert result.exit_code == 2
    assert "was compared with champion 1, and the champion is version 3 by now; promote 'demo' again" in result.output
    assert read_head(bucket, name)[0].champion == 3
