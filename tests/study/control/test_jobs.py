"""Addresses, tokens and refusals of the Jobs API, against local servers; and what terminal and cluster must share."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from infra.cluster.jobs import Jobs, dashboard_address
from infra.cluster.node_check import environment_facts
from infra.errors import ServiceError
from infra.errors import UserError as InfraUserError
from infra.stack.processes import free_ports
from study.cli.cluster import main
from study.control.lifecycle import pause_study, stop_study
from study.control.submit import check_shared
from study.errors import UserError
from study.spec.files import parse_study
from study.store.database import engine_for
from study.store.store import StudyStore
from tests.support.study_files import minimal

RAY = importlib.metadata.version("ray")
SHARED = {
    "AWS_ENDPOINT_URL": "http://s3.lab:9000", "AWS_REGION": "here", "AWS_ACCESS_KEY_ID": "k",
    "AWS_SECRET_ACCESS_KEY": "hush", "AGFT_BUCKET": "agft", "MLFLOW_TRACKING_URI": "http://mlflow.lab:5000",
}  # fmt: skip
STUDY = minimal()
POSTGRES = "postgresql+psycopg://agft:hush@db.lab/agft"


@contextmanager
def dashboard(answers: dict[str, Any], *, token: str | None = None) -> Iterator[str]:
    """Answers paths with JSON (or text), and demands a token as Ray's dashboard does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers["Authorization"]
            code = 200 if token is None or given == f"Bearer {token}" else 403 if given else 401
            answer = answers.get(self.path.partition("?")[0])
            body = answer if isinstance(answer, str) else json.dumps(answer)
            self.send_response(code if answer is not None or code != 200 else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def nodes(*addresses: str) -> dict[str, Any]:
    rows = [
        {"node_ip": address, "is_head_node": place == 0, "state": "ALIVE", "resources_total": {"CPU": 1.0}}
        for place, address in enumerate(addresses)
    ]
    dead = {"node_ip": "203.0.113.9", "is_head_node": False, "state": "DEAD", "resources_total": {}}
    return {"/api/v0/nodes": {"data": {"result": {"result": [*rows, dead]}}}}


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_the_token_is_read_from_the_file_that_the_environment_names(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("secret-token\n")
    with dashboard({"/api/version": {"ray_version": RAY}}, token="secret-token") as address:
        with pytest.raises(ServiceError, match=r"demands a token \(401\): set RAY_AUTH_MODE"):
            Jobs(address).check()
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        assert Jobs(address).check() == RAY
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
        with pytest.raises(ServiceError, match=r"refuses the token \(403\)") as caught:
            Jobs(address).check()
        assert "another" not in str(caught.value)


def test_a_token_file_that_cannot_be_read_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nothing"))
    with pytest.raises(InfraUserError, match=r"RAY_AUTH_TOKEN_PATH: .*nothing: cannot be read"):
        Jobs("http://127.0.0.1:1")


def test_another_ray_version_is_refused_with_both():
    with (
        dashboard({"/api/version": {"ray_version": "2.40.0"}}) as address,
        pytest.raises(ServiceError, match=rf"runs Ray 2\.40\.0, this terminal has {RAY}"),
    ):
        Jobs(address).check()


@pytest.mark.parametrize("answers", [{"/api/version": "<html>"}, {}, {"/api/version": {"version": 1}}])
def test_what_is_no_dashboard_is_told(answers):
    with dashboard(answers) as address, pytest.raises(ServiceError, match="is no Ray dashboard"):
        Jobs(address).check()


def test_no_answer_is_told_with_the_address():
    port = free_ports(1)[0]
    with pytest.raises(ServiceError, match=f"no answer from a Ray dashboard at http://127.0.0.1:{port}"):
        Jobs(f"http://127.0.0.1:{port}").check()


def test_a_cluster_is_here_only_if_all_its_live_nodes_are_and_not_behind_a_tunnel():
    with dashboard(nodes("127.0.0.1", "127.0.0.1")) as address:
        assert Jobs(address).is_here()
    with dashboard(nodes("127.0.0.1", "203.0.113.7")) as address:
        assert not Jobs(address).is_here()
    with dashboard(nodes("203.0.113.7")) as address:
        assert not Jobs(address).is_here(), "a tunnel's end is on loopback, its cluster is not"


def test_the_address_is_given_or_from_the_environment_and_a_gcs_address_is_not_one():
    assert dashboard_address("http://head:8265/", {"RAY_API_SERVER_ADDRESS": "http://x:1"}) == "http://head:8265"
    assert dashboard_address(None, {"RAY_API_SERVER_ADDRESS": "https://x:1"}) == "https://x:1"
    assert dashboard_address(None, {"RAY_ADDRESS": "http://x:1"}) == "http://x:1"
    with pytest.raises(InfraUserError, match="Name its dashboard"):
        dashboard_address(None, {"RAY_ADDRESS": "head:6379"})
    with pytest.raises(InfraUserError, match="--address: 'head:6379': expected the cluster's dashboard"):
        dashboard_address("head:6379", {})
    with pytest.raises(InfraUserError, match="RAY_AUTH_TOKEN_PATH") as caught:
        dashboard_address("http://me:hush@head:8265", {})
    assert "hush" not in str(caught.value)


def test_services_on_other_machines_can_be_shared():
    assert check_shared(SHARED, POSTGRES, here=False).bucket == "agft"


@pytest.mark.parametrize(
    ("changed", "database", "said"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, POSTGRES, "AWS_ENDPOINT_URL: 127.0.0.1"),
        ({"MLFLOW_TRACKING_URI": "http://localhost:5000"}, POSTGRES, "MLFLOW_TRACKING_URI: localhost"),
        ({"MLFLOW_TRACKING_URI": "/shared/mlruns"}, POSTGRES, "expected a server's address"),
        ({}, "sqlite:////shared/studies.db", "AGFT_STUDY_DB: SQLite"),
        ({}, "postgresql+psycopg://agft:hush@127.0.0.1/agft", "AGFT_STUDY_DB: a database on loopback"),
        ({}, "postgresql+psycopg:///agft", "AGFT_STUDY_DB: a database on loopback"),
    ],
)
def test_what_another_machine_cannot_reach_is_refused(changed, database, said):
    with pytest.raises(UserError) as caught:
        check_shared({**SHARED, **changed}, database, here=False)
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


def test_everything_wrong_is_told_at_once():
    local = {**SHARED, "AWS_ENDPOINT_URL": "http://localhost:1", "MLFLOW_TRACKING_URI": "http://[::1]:2"}
    with pytest.raises(UserError) as caught:
        check_shared(local, "sqlite:///studies.db", here=False)
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(UserError, match="names no services"):
        check_shared({}, POSTGRES, here=True)


def test_a_cluster_on_this_very_machine_shares_its_loopback_and_its_files():
    local = {**SHARED, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "MLFLOW_TRACKING_URI": "http://localhost:2"}
    assert check_shared(local, "sqlite:////home/me/studies.db", here=True).s3_endpoint == "http://127.0.0.1:1"


def test_a_node_tells_what_it_lacks_and_no_values():
    facts = environment_facts({name: value for name, value in SHARED.items() if name != "AWS_REGION"})
    assert facts["missing"] == ["AWS_REGION or AWS_DEFAULT_REGION"]
    assert "s3.lab" not in json.dumps(facts)
    assert environment_facts(SHARED)["missing"] == []


@pytest.mark.parametrize(("ask", "word"), [(stop_study, "stop"), (pause_study, "pause")])
def test_a_driver_that_comes_after_somebody_said_no_does_not_begin(monkeypatch, tmp_path, capsys, ask, word):
    for name, value in {**SHARED, "AGFT_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AGFT_STUDY_DB", raising=False)
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "small")
    store.create(parse_study(STUDY, source="study.yaml"))
    ask(store)
    monkeypatch.setattr(sys, "argv", ["submitted", "small", str(store.load().created_ms)])
    assert main() == 0
    assert f"asked for {word}" in capsys.readouterr().out
    assert store.load().token <= 1, "nobody has driven"


@pytest.mark.parametrize(
    "address", ["nonsense", "postgresql+psycopg://u:hush@h:port/d", "postgresql+psycopg://u:hu@sh@h/d"]
)
def test_a_database_address_that_is_none_is_refused_without_showing_it(address):
    for check in (lambda: check_shared(SHARED, address, here=False), lambda: engine_for(address)):
        with pytest.raises(UserError, match="AGFT_STUDY_DB") as told:
            check()
        assert "hu" not in str(told.value)
