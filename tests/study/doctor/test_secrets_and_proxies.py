"""`agft doctor` on secrets that others may read, and on proxies that stand between us and a service."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.checks.machine import check_secret_files
from infra.checks.mlflow import check_mlflow, require_mlflow
from infra.checks.s3 import check_s3
from infra.errors import UserError
from infra.services import Services
from infra.stack.processes import write_private
from study.cli.main import main

NOBODY = "http://user:hidden@127.0.0.1:9"


def test_a_secret_that_others_may_read_is_named_with_its_chmod(tmp_path: Path) -> None:
    for name in ("secrets.json", "ray_token", "seaweedfs/tls/key.pem"):
        write_private(tmp_path / name, "secret")
    own = tmp_path / "token"
    write_private(own, "secret")
    [row] = check_secret_files(tmp_path, [own, tmp_path / "not there", Path("/dev/null")])
    assert (row.state, row.detail) == ("ok", "4, closed to everybody else")

    (tmp_path / "ray_token").chmod(0o644)
    own.chmod(0o620)
    first, second = check_secret_files(tmp_path, [own])
    assert (first.state, second.state) == ("failed", "failed")
    assert first.detail == f"{tmp_path}/ray_token has mode 0644: others may read it"
    assert first.remedy.startswith(f"chmod 600 {tmp_path}/ray_token")
    assert second.detail == f"{own} has mode 0620: others may write it"


def test_a_secret_of_another_user_is_named_with_its_chown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "secrets.json", "secret")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if os.getuid() == 0:  # root's own files are nobody else's
        os.chown(tmp_path / "secrets.json", 54321, -1)
    [row] = check_secret_files(tmp_path)
    assert "belongs to another user" in row.detail
    assert row.remedy == f"chown 12345 {tmp_path}/secrets.json"


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_between_us_and_a_service_is_named_without_its_password(
    service_environment: Services, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for each in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, NOBODY)
    if name != "all_proxy":  # botocore does not know that one
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example:9000")
        [row] = check_s3(service_environment.bucket)
        assert f"requests go by {name}=http://127.0.0.1:9: is s3.example to be in no_proxy?" in row.remedy
    monkeypatch.setenv("no_proxy", "other.example")
    services = Services("", "", "", "", "", "http://mlflow.example:5000", "", "")
    [row] = check_mlflow(services)
    assert row.state == "failed"
    found = f"requests go by {name}=http://127.0.0.1:9: is mlflow.example to be in no_proxy?"
    assert found in row.remedy
    assert "hidden" not in row.detail + row.remedy
    monkeypatch.setenv("no_proxy", "mlflow.example")
    [row] = check_mlflow(services)
    assert name not in row.remedy


def test_a_study_starts_without_a_server_that_is_away_and_not_with_one_that_refuses_it(
    service_environment: Services,
) -> None:
    said: list[str] = []
    require_mlflow(service_environment, said.append, experiment="agft")
    assert said == []
    require_mlflow(replace(service_environment, mlflow_uri="http://127.0.0.1:9"), said.append, experiment="agft")
    assert said[0].startswith("MLflow at http://127.0.0.1:9 does not answer (")
    assert said[0].endswith("its records are sent later")
    with pytest.raises(UserError, match=r"refuses the password of user 'agft'.*MLFLOW_TRACKING_PASSWORD"):
        require_mlflow(replace(service_environment, mlflow_password="0" * 20), said.append, experiment="agft")
    other = replace(service_environment, mlflow_uri=service_environment.s3_endpoint)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        require_mlflow(other, said.append, experiment="agft")


def test_a_study_with_an_address_that_is_none_is_refused_before_anything_is_there(
    service_environment: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "127.0.0.1:5000")
    done = CliRunner().invoke(main, ["run", str(Path(__file__).parents[3] / "study/recipes/demo.yaml")])
    assert done.exit_code == 2
    assert "write http://127.0.0.1:5000" in done.output
    assert not (tmp_path / "home" / "studies.db").exists()
