"""Recognisable secrets in all that holds one, and a whole study: afterwards they are in files of mode 0600 alone.

The study has a failed trial, a promotion, a doctor, a backup and a report, on PostgreSQL; MLflow is killed in between.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import re
import secrets
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import boto3
import psutil
import psycopg
import pytest

from infra.checks.machine import PRIVATE
from infra.stack import mlflow_server, postgres, processes, seaweed
from infra.tracking.calls import connect
from tests.support.services.real_run import Run, cleared, read_until
from tests.support.study_files import trained

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(1500)]

STUDY = trained(
    name="canary", budget="{trials: 3}", warm_starts="[{method.feature_weight: 0}, {method.feature_weight: 1.0e+38}]",
    search="{method.scale_ratio: {low: 0.5, high: 1.0}, method.feature_weight: {choices: [0, 1, 1.0e+38]}}",
    resources="{workers: 1, cpus_per_worker: 1, max_concurrent: 1}",
    evaluate="{select: &few {attack: {eps: [4/255], steps: 2}, samples: 24}, final: *few}",
    promote="{candidates: 1, gates: {sanity: {checks: [deterministic]}}}",
)  # fmt: skip
STATE = [f"/api/v0/{kind}?detail=1&limit=1000" for kind in ("actors", "tasks", "workers", "jobs", "runtime_envs",
         "placement_groups", "nodes")] + ["/api/jobs/"]  # fmt: skip


class Canaries:
    """The secrets by name, and where any of them was seen."""

    def __init__(self) -> None:
        names = (*seaweed.SECRETS, *mlflow_server.SECRETS, *postgres.SECRETS, "ray_token", "webhook", "webhook_secret")
        self.planted = {name: secrets.token_hex(10 if name == "access_key" else 24) for name in names}
        self.seen: set[str] = set()
        self.looked: dict[str, int] = {}

    def look(self, kind: str, where: object, found: bytes | str) -> None:
        """Note every secret that is in `found`."""
        data = found.encode() if isinstance(found, str) else found
        self.looked[kind] = self.looked.get(kind, 0) + 1
        for name, secret in self.planted.items():
            if secret.encode() in data:
                self.seen.add(f"{name} in {kind} {where}")


class Hook(http.server.BaseHTTPRequestHandler):
    paths: list[str]

    def do_POST(self) -> None:
        type(self).paths.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture
def run(canaries: Canaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    run = Run(home=(tmp_path / "home").resolve(), file=tmp_path / "study.yaml")
    run.file.write_text(STUDY)
    kept = {name: canaries.planted[name] for name in (*seaweed.SECRETS, *mlflow_server.SECRETS, *postgres.SECRETS)}
    processes.write_private(run.home / "secrets.json", json.dumps(kept))
    processes.write_private(run.home / "ray_token", canaries.planted["ray_token"])
    Hook.paths = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = {"AGFT_WEBHOOK": f"http://127.0.0.1:{server.server_port}/{canaries.planted['webhook']}",
            "AGFT_WEBHOOK_SECRET": canaries.planted["webhook_secret"]}  # fmt: skip
    own = Run.environment
    monkeypatch.setattr(Run, "environment", lambda self: own(self) | hook)
    try:
        with cleared(run):
            yield run
    finally:
        server.shutdown()
        server.server_close()
        shutil.rmtree(postgres.folder_of(run.home), ignore_errors=True)


class Watch(threading.Thread):
    """While a study runs: every command line, Ray's state and logs, and what listens."""

    def __init__(self, run: Run, canaries: Canaries) -> None:
        super().__init__(daemon=True)
        self.run_, self.canaries, self.over = run, canaries, threading.Event()
        self.open: set[str] = set()
        self.problem: Exception | None = None

    def run(self) -> None:
        try:
            looked = 0.0
            while not self.over.wait(0.3):
                self.look_at_command_lines()
                if time.monotonic() - looked > 5:
                    looked = time.monotonic()
                    self.look_at_ray()
                    self.open.update(line for line in self.run_.listening() if not line.startswith("127.0.0.1:"))
        except Exception as error:
            self.problem = error

    def look_at_command_lines(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                self.canaries.look("argv", process.pid, " ".join(process.cmdline()))

    def look_at_ray(self) -> None:
        told = [line for line in self.run_.listening() if "dashboard" in line and "agent" not in line]
        for line in told:
            for path in STATE:
                request = urllib.request.Request(
                    f"http://{line.split()[0]}{path}",
                    headers={"Authorization": f"Bearer {self.canaries.planted['ray_token']}"},
                )
                with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=5) as answer:
                    self.canaries.look("Ray's state", path, answer.read())
        for process in self.run_.processes():
            with contextlib.suppress(psutil.Error, FileNotFoundError):  # a session's folder goes with its end
                found = re.search(r"(/\S+/session_\d\S+?)/", " ".join(process.cmdline()))
                if found and Path(found[1]).is_dir():
                    look_at_files(self.canaries, "Ray's session", [Path(found[1])])
                    return


def look_at_files(
    canaries: Canaries, kind: str, folders: Iterable[Path], *, private: frozenset[str] = frozenset()
) -> None:
    """Every file but those in `private` (relative to the first folder) that are closed to others."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_symlink() or not path.is_file():
                continue
            if str(path.relative_to(folder)) in private and path.stat().st_mode & 0o077 == 0:
                continue
            with contextlib.suppress(FileNotFoundError):
                canaries.look(kind, path, path.read_bytes())


def look_at_objects(canaries: Canaries, services: dict[str, str]) -> None:
    client = boto3.session.Session().client(
        "s3", endpoint_url=services["AWS_ENDPOINT_URL"], region_name=services["AWS_REGION"],
        aws_access_key_id=services["AWS_ACCESS_KEY_ID"], aws_secret_access_key=services["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    for bucket in client.list_buckets()["Buckets"]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"]):
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    answer = client.get_object(Bucket=bucket["Name"], Key=entry["Key"])
                    data = answer["Body"].read()
                    canaries.look("S3", entry["Key"], data if data[:2] != b"\x1f\x8b" else gzip.decompress(data))
                    canaries.look("S3 metadata", entry["Key"], repr(answer["Metadata"]))


def look_at_mlflow(canaries: Canaries, services: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with params, tags and metrics; their artifacts are in S3."""
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    client = connect(services["MLFLOW_TRACKING_URI"])
    for experiment in client.search_experiments():
        for found in client.search_runs([experiment.experiment_id], max_results=1000):
            canaries.look("MLflow's runs", found.info.run_name, repr(found.to_dictionary()))
    for model in client.search_registered_models():
        for version in client.search_model_versions(f"name='{model.name}'"):
            canaries.look("MLflow's models", version.name, repr(dict(version)))


def look_at_the_database(canaries: Canaries, run: Run) -> None:
    port = json.loads((run.home / "state.json").read_text())["postgres"]["ports"]["sql"]
    for name in postgres.DATABASES:
        with psycopg.connect(host="127.0.0.1", port=port, user=postgres.USER, dbname=name,
                             password=canaries.planted["postgres_password"]) as connection:  # fmt: skip
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (table,) in tables:
                for row in connection.execute(f'SELECT t::text FROM "{table}" t').fetchall():  # type: ignore[call-overload]
                    canaries.look("database", f"{name}.{table}", row[0])


def test_secrets_are_found_nowhere_but_in_the_private_files_of_the_home(
    run: Run, canaries: Canaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = [run.agft("stack", "up", "--postgres").stdout]
    watch = Watch(run, canaries)
    watch.start()
    driver = run.start("run", str(run.file))
    printed.append(read_until(driver, lambda line: re.search(r"trial +0  epoch 1/", line) is not None))
    for process in processes.members(f"{run.home}:mlflow"):
        process.kill()  # whoever keeps the services up starts it again
    rest, _ = driver.communicate(timeout=900)
    printed.append(rest)
    assert "failed (non-finite)" in "".join(printed)
    assert driver.returncode == 0, printed
    promoted = run.agft("promote", "canary", "--force", "--reason", "canary", check=False)
    printed += [promoted.stdout, promoted.stderr]
    assert "promotion: " in promoted.stdout + promoted.stderr, promoted
    watch.over.set()
    watch.join(60)
    assert watch.problem is None
    for arguments in (
        ("doctor", str(run.file)), ("status", "canary", "--json"), ("report", "canary"),
        ("audit", "canary"), ("metrics", "--once"),
        ("backup", str(tmp_path / "out" / "backup.tar"), "--objects", str(tmp_path / "out" / "objects")),
        ("archive", "canary", str(tmp_path / "out" / "archive.json")),
    ):  # fmt: skip
        (tmp_path / "out").mkdir(exist_ok=True)
        done = run.agft(*arguments, check=False)
        assert done.returncode in (0, 1), (arguments, done.stderr)
        printed += [done.stdout, done.stderr]
    for text in printed:
        canaries.look("output", "of a command", text)
    services = run.services()
    look_at_objects(canaries, services)
    look_at_mlflow(canaries, services, monkeypatch)
    look_at_the_database(canaries, run)
    run.agft("stack", "down")
    private = frozenset((*PRIVATE, "seaweedfs/tls/ca.pem", "seaweedfs/tls/cert.pem"))
    look_at_files(canaries, "home", [run.home], private=private)
    look_at_files(canaries, "files", [tmp_path / "out", postgres.folder_of(run.home)])

    assert sorted(canaries.seen) == []
    assert watch.open == set(), "every port is on loopback"
    assert Hook.paths, "the webhook was told"
    assert all(canaries.planted["webhook"] in path for path in Hook.paths)
    for kind in ("argv", "Ray's state", "Ray's session", "S3", "MLflow's runs", "MLflow's models", "database", "home",
                 "files", "output"):  # fmt: skip
        assert canaries.looked.get(kind, 0) > 3 or kind == "MLflow's models", (kind, canaries.looked)
    assert os.stat(run.home / "secrets.json").st_mode & 0o777 == 0o600
