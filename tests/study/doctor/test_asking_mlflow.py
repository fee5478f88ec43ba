"""MLflow is asked before a study starts as its own client will ask: address, certificate, user and rights."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from infra.checks.mlflow import check_mlflow, require_mlflow
from infra.errors import UserError
from infra.services import Services
from infra.stack.seaweed import ensure_certificates
from infra.tracking.calls import connect, experiment_id
from infra.tracking.runs import Tracker
from tests.support.services.gate import HABITS, Refusal, gate

NOBODYS = Services("", "", "", "", "", "", "", "")


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE",
                 "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@contextmanager
def server(certificates: Path | None = None, leads_to: str = "") -> Iterator[tuple[str, list[str | None]]]:
    """A small MLflow without experiments, or what leads to one; its address, and who asked."""
    asked: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"experiments": []}).encode()
            self.send_response(301 if leads_to else 200)
            if leads_to:
                self.send_header("Location", leads_to + self.path)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        scheme = "http"
        if certificates is not None:
            ensure_certificates(certificates)
            context, scheme = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "https"
            context.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
            one.socket = context.wrap_socket(one.socket, server_side=True)
        threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"{scheme}://127.0.0.1:{one.server_port}", asked
        one.shutdown()


def require(uri: str, **changed: str) -> list[str]:
    said: list[str] = []
    require_mlflow(replace(NOBODYS, mlflow_uri=uri, **changed), said.append, experiment="agft")
    return said


def test_an_address_that_only_leads_to_the_servers_is_refused_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(tmp_path) as (https, _), server(leads_to=https) as (http, _):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        with pytest.raises(UserError, match=f"{http} only leads to {https}.*: write {https}"):
            require(http)
        [row] = check_mlflow(replace(NOBODYS, mlflow_uri=http))
        assert (row.state, row.remedy) == ("failed", f"write {https}")


def test_certificates_are_those_that_mlflows_client_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path) as (uri, _):
        with pytest.raises(UserError, match=r"not trusted here.*MLFLOW_TRACKING_SERVER_CERT_PATH"):
            require(uri)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "no-such.pem"))
        with pytest.raises(UserError, match=r"not trusted here.*no-such\.pem"):
            require(uri)
        for name, value in (
            ("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem")),
            ("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "ca.pem")),
            ("MLFLOW_TRACKING_INSECURE_TLS", "true"),
        ):
            monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
            with monkeypatch.context() as patched:
                patched.setenv(name, value)
                assert require(uri) == []


def test_who_we_are_may_stand_in_mlflows_own_file(tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = ann\nmlflow_tracking_password = p\n"
    )
    with server() as (uri, asked):
        require(uri)
        assert set(asked) == {"Basic YW5uOnA="}
        asked.clear()
        require(uri, mlflow_username="bob", mlflow_password="p")
        assert set(asked) == {"Basic Ym9iOnA="}


def test_a_server_that_is_away_is_only_mentioned() -> None:
    [text] = require("http://127.0.0.1:9")
    assert text.startswith("MLflow at http://127.0.0.1:9 does not answer (")
    assert "refused" in text


def test_a_user_who_may_read_and_not_write_is_told_before_the_study_starts(service_environment: Services) -> None:
    admin = connect(service_environment.mlflow_uri)
    number = experiment_id(admin, "read only")
    owner = (service_environment.mlflow_username, service_environment.mlflow_password)

    def of_users(path: str, **told: str) -> None:
        url = f"{service_environment.mlflow_uri}/api/{path}"
        requests.post(url, json={"username": "reader", **told}, auth=owner, timeout=20).raise_for_status()

    of_users("2.0/mlflow/users/create", password="reader's password")
    right = {"resource_type": "experiment", "resource_id": number}
    user = replace(service_environment, mlflow_username="reader", mlflow_password="reader's password")

    def ask(experiment: str = "read only") -> None:
        require_mlflow(user, lambda text: pytest.fail(text), experiment=experiment)

    ask("not there yet")
    of_users("3.0/mlflow/users/permissions/grant", permission="READ", **right)
    with pytest.raises(UserError, match=r"user 'reader' may not write runs in the experiment 'read only' \(403\)"):
        ask()
    of_users("3.0/mlflow/users/permissions/revoke", **right)
    of_users("3.0/mlflow/users/permissions/grant", permission="EDIT", **right)
    ask()
    assert admin.search_runs([number]) == [], "it leaves nothing"
    assert admin.get_experiment_by_name("not there yet") is None


def test_a_tracker_says_why_mlflow_does_not_take_what_is_left(
    service_environment: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HABITS, "no-writes", Refusal(403, "AccessDenied", "may not write", ("POST",)))
    with gate(service_environment.mlflow_uri, own_host=True) as one:
        tracker = Tracker(one.address, "why")
        tracker.ensure_run("t", name="t", params={}, tags={}, start_time_ms=1)
        assert tracker.flush(20.0) == 0
        assert tracker.why_waiting == ""
        one.habit = "no-writes"
        tracker.finish("t", "FINISHED", 2)
        assert tracker.flush(0.5) == 1
        assert tracker.why_waiting.startswith("refuses our credentials")
        tracker.close(0.0)
