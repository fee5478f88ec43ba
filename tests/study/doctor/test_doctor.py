"""`agft doctor` on set-ups that are broken in one way each: it names the cause and the remedy, and leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from infra import storage
from infra.checks.diagnosis import Diagnosis, ok, side_by_side
from infra.checks.machine import check_disk, check_gpus
from infra.checks.mlflow import check_mlflow
from infra.checks.s3 import check_s3, conditional_puts, require_conditional_puts
from infra.errors import ServiceError
from infra.services import Services, services_from_environment
from infra.stack import processes
from infra.stack import stack as embedded
from study.doctor.database import check_database
from study.doctor.doctor import examine, exit_code
from study.doctor.study import needs_of
from study.store.database import MIGRATIONS, engine_for
from tests.support.services.clock import Clock, compiler
from tests.support.services.forgetful_s3 import forgetful_s3
from tests.support.services.real_run import AGFT
from trainers.device import minimum_driver

RECIPE = Path(__file__).parents[3] / "study" / "recipes" / "demo.yaml"


def problems(found: list[Diagnosis]) -> dict[str, str]:
    """check -> cause and remedy, of what failed."""
    return {finding.check: f"{finding.detail} -> {finding.remedy}" for finding in found if finding.state == "failed"}


def only(found: list[Diagnosis], check: str) -> str:
    """The text of the one thing that failed."""
    failures = problems(found)
    assert list(failures) == [check], failures
    assert exit_code(found) == 1
    return failures[check]


def dead_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this user has for Ray is not looked at."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray_token"))


@pytest.fixture
def home(service_environment: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, in an environment that names the real services."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("AGFT_HOME", str(tmp_path))
    return tmp_path


def test_a_good_set_up_has_no_failure_and_the_doctor_leaves_nothing_behind(
    home: Path, service_environment: Services
) -> None:
    import mlflow

    before = storage.list_objects(f"s3://{service_environment.bucket}/.agft")
    found = examine(home, needs_of(RECIPE))
    assert problems(found) == {}
    assert exit_code(found) == 0
    assert {"S3", "S3 conditional puts", "MLflow", "study database", "clock", "datasets", "weights", "GPUs", "disk",
            "shared memory", "versions", "ports", "Ray dashboard"} <= {finding.check for finding in found}  # fmt: skip
    assert storage.list_objects(f"s3://{service_environment.bucket}/.agft") == before
    client = mlflow.MlflowClient(service_environment.mlflow_uri)
    assert not [model.name for model in client.search_registered_models() if "doctor" in model.name]
    assert list(home.iterdir()) == []
    secrets = (service_environment.secret_key, service_environment.mlflow_password)
    assert not [secret for secret in secrets if secret in repr(found)]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("changed", "check", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "0" * 40}, "S3", "secret key is wrong.*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "S3", "does not know the access key.*AWS_ACCESS_KEY_ID"),
        ({"AGFT_BUCKET": "nowhere"}, "S3", "no bucket 'nowhere'.*AGFT_BUCKET"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:DEAD"}, "S3", "does not answer.*AWS_ENDPOINT_URL"),
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:DEAD"}, "MLflow", "does not answer.*refused.*MLFLOW_TRACKING_URI"),
        ({"MLFLOW_TRACKING_PASSWORD": "0" * 20}, "MLflow", "refuses the password of user 'agft'.*MLFLOW_TRACKING_PASS"),
        (
            {"AGFT_STUDY_DB": "postgresql+psycopg://a:secret@127.0.0.1:DEAD/x"},
            "study database",
            "nothing listens.*start",
        ),
    ],
    ids=["secret", "key", "bucket", "S3-gone", "MLflow-gone", "password", "database-gone"],
)
def test_a_service_that_is_wrong_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], check: str, said: str
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value.replace("DEAD", str(dead_port())))
    services = services_from_environment(os.environ)
    assert services is not None
    look = {"S3": lambda: check_s3(services.bucket), "MLflow": lambda: check_mlflow(services),
            "study database": lambda: check_database(os.environ["AGFT_STUDY_DB"])}  # fmt: skip
    text = only(look[check](), check)
    assert "secret@" not in text
    assert re.search(said, text), text


def test_a_wrong_database_password_or_name_is_told_from_a_server_that_is_gone(postgres_url: str) -> None:
    url = sa.make_url(postgres_url)
    wrong = url.set(password="guess").render_as_string(hide_password=False)
    assert "refuses the user or password" in only(check_database(wrong), "study database")
    wrong = url.set(database="nothing").render_as_string(hide_password=False)
    assert "has no such database" in only(check_database(wrong), "study database")


def test_an_old_and_a_newer_schema_are_named_and_left_as_they_are(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_for(database)
    assert problems(check_database(database)) == {}

    def there() -> str:
        with engine.connect() as connection:
            return str(connection.execute(sa.text("SELECT version_num FROM agft_schema")).scalar_one())

    head = there()
    later = shutil.copytree(MIGRATIONS, tmp_path / "migrations")  # of a version of agft that is still to come
    (later / "versions" / "v9998_later.py").write_text(f"revision, down_revision = '9998', '{head}'\n")
    with monkeypatch.context() as patched:
        patched.setattr("study.doctor.database.MIGRATIONS", later)
        said = only(check_database(database), "database schema")
    assert f"old: agft's is {head}, this version needs 9998" in said
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE agft_schema SET version_num = '9999'"))
    said = only(check_database(database), "database schema")
    assert f"newer than this version of agft: 9999, known up to {head}" in said
    assert there() == "9999"


@pytest.mark.usefixtures("home")
def test_a_store_that_ignores_conditions_is_usable_but_promotion_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with forgetful_s3() as (address, objects):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        found = check_s3("agft")
        text = only(found, "S3 conditional puts")
        assert "If-None-Match: * is ignored" in text
        assert "If-Match is ignored" in text
        assert "promotion is refused on this store" in text
        assert "S3" in {finding.check for finding in found if finding.state == "ok"}
        with pytest.raises(ServiceError, match=r"If-Match is ignored.*promotion is refused"):
            require_conditional_puts("agft")
        assert objects == {}


def test_the_embedded_store_lets_one_of_two_racing_puts_win_every_time(prefix: str) -> None:
    bucket, key = storage.split_uri(prefix)
    for number in range(20):
        [row] = conditional_puts(storage.client(), bucket, f"{key}/{number}")
        assert row.state == "ok", row
    require_conditional_puts(bucket)
    assert not storage.list_objects(f"s3://{bucket}/.agft/doctor")


def test_a_disk_without_space_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(total=8 << 20, used=0, free=8 << 20))
    [row] = check_disk([("studies", tmp_path / "home" / "not" / "yet")])
    assert row.state == "failed"
    text = f"{row.detail} -> {row.remedy}"
    assert "no space: 8 MB free of 8 MB" in text
    assert "AGFT_HOME" in text


def test_what_a_study_asks_for_and_the_machine_lacks_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(home))  # a machine with GPUs shows none without nvidia-smi
    text = RECIPE.read_text()
    assert "bundled" in text
    assert "tiny-wide" in text
    lacking = home / "study.yaml"
    text = text.replace("pretrained: bundled", "pretrained: /nowhere/weights.safetensors")
    text = text.replace("train: tiny-wide", "train: imagenet-train")
    lacking.write_text(text.replace("resources: {", "resources: {gpus_per_worker: 1, "))
    monkeypatch.setenv("AGFT_DATA", str(home / "data"))
    needs = needs_of(lacking)
    assert needs.gpus_per_worker == 1
    found = problems(examine(home, needs))
    assert set(found) == {"GPUs", "datasets", "weights"}, found
    assert "asks for 1 GPU a worker" in found["GPUs"]
    assert "gpus_per_worker: 0" in found["GPUs"]
    assert "data.train: 'imagenet-train' is not prepared" in found["datasets"]
    assert "agft data prepare" in found["datasets"]
    assert "model.pretrained: /nowhere/weights.safetensors: no such file" in found["weights"]


def test_a_driver_that_is_too_old_is_named_with_the_one_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, NVIDIA A100-SXM4-80GB, 81920, 3, 535.183.01'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    [row] = check_gpus(1.0, minimum_driver=minimum_driver)
    assert row.state == "failed"
    assert "1 GPUs, and torch cannot use them" in row.detail
    assert "install NVIDIA driver 580 or newer, as CUDA 13.0 needs (here: 535.183.01)" in row.remedy


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_a_clock_that_is_wrong_is_named(tmp_path: Path) -> None:
    if not compiler():
        pytest.skip("no C compiler")
    clock = Clock(tmp_path)
    for seconds, said in ((-1200, "the clock here is wrong"), (300, "S3's clock is 300 s behind this machine's")):
        clock.set(seconds)
        done = subprocess.run(
            [*AGFT, "doctor", "--json"], env={**os.environ, **clock.variables}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        failures = [
            f"{row['detail']} -> {row['remedy']}" for row in json.loads(done.stdout) if row["state"] == "failed"
        ]
        assert any(said in text for text in failures), failures
        assert any("MLflow's clock is" in text for text in failures), failures
        assert all("clock" in text for text in failures), failures


def test_half_an_environment_and_nothing_at_all_are_told_apart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGFT_BUCKET")
    assert "AGFT_BUCKET" in only(examine(home, None), "services")
    for name in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name)
    found = examine(home, None)
    assert problems(found) == {}
    assert "`agft run` starts them" in found[0].detail


def test_a_check_that_hangs_or_breaks_costs_its_own_limit_and_no_other() -> None:
    ever = threading.Event()
    waited: list[bool] = []

    def hang() -> list[Diagnosis]:
        waited.append(ever.wait(60))
        return []

    def broken() -> list[Diagnosis]:
        raise KeyError("odd")

    found = side_by_side({"slow": (0.5, hang), "broken": (1.0, broken), "fine": (1.0, lambda: [ok("fine", "yes")])})
    assert waited == [], "it still hangs"
    ever.set()
    assert [(row.check, row.state) for row in found] == [("slow", "failed"), ("broken", "failed"), ("fine", "ok")]
    assert "no answer within" in found[0].detail
    assert "KeyError" in found[1].detail


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_servers_that_accept_and_say_nothing_do_not_hold_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        port = silent.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AGFT_STUDY_DB", f"postgresql+psycopg://a:b@127.0.0.1:{port}/x")
        done = subprocess.run([*AGFT, "doctor", "--json"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert {row["check"] for row in rows if row["state"] == "failed"} == {"S3", "MLflow", "study database"}


@pytest.mark.slow
def test_an_embedded_service_that_is_down_is_named_and_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "AGFT_STUDY_DB", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    own = tmp_path / "home"
    try:
        embedded.up(own)
        for process in processes.members(f"{own}:mlflow"):
            process.kill()
        found = problems(examine(own, None))
        assert set(found) == {"services", "MLflow"}
        assert "embedded mlflow is stopped" in found["services"]
        assert "agft stack up" in found["services"]
        assert not processes.members(f"{own}:mlflow")
    finally:
        embedded.down(own)
