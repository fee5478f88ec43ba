"""What happens to a champion reaches a real web address and the tag of its version in a real MLflow."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.services import Services
from infra.tracking import calls as mlflow_calls
from infra.tracking.registry import registered
from study.cli.here.events import TAG, tell
from study.cli.main import main
from study.models.registry import register_promoted
from tests.support.services.receiver import receiver
from tests.support.shipped import ship


def test_a_rollback_and_a_refusal_are_told_with_what_led_to_them(
    service_environment: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, name = service_environment, f"told-{secrets.token_hex(4)}"
    versions = [ship(services.bucket, name, tmp_path, seed=seed) for seed in (0, 1)]
    for version in versions:
        register_promoted(version, tracking_uri=services.mlflow_uri)

    def tag(number: int) -> dict[str, object]:
        client = mlflow_calls.connect(services.mlflow_uri)
        found = registered(services.mlflow_uri, name).versions[versions[number - 1].key]
        return json.loads(client.get_model_version(name, str(found)).tags[TAG])

    with receiver([200]) as there:
        monkeypatch.setenv("AGFT_WEBHOOK", there.url)
        done = CliRunner().invoke(main, ["rollback", name, "--reason", "users complain"])
        assert done.exit_code == 0, done.output
        tell(services, "refused", name, {"study": "demo", "failed_gates": ["floor clean"]}, print)
        back, refused = (json.loads(body) for _, body in there.got)
    assert (back["event"], back["model"], back["champion"], back["from"]) == ("rolled_back", name, 1, 2)
    assert back["reason"] == "users complain"
    assert (refused["event"], refused["champion"], refused["failed_gates"]) == ("refused", 1, ["floor clean"])
    assert tag(1) == {key: value for key, value in refused.items() if key != "time"}

    lines: list[str] = []
    monkeypatch.setenv("AGFT_WEBHOOK", "http://127.0.0.1:9/gone?key=topsecret")
    tell(services, "refused", name, {}, lines.append)  # a receiver that is gone costs a line
    assert lines == ["the webhook has not taken 1 message"]
