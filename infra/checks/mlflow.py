"""Whether MLflow can be used: reached, authorised, written to. Leaves nothing behind."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from typing import Any

from infra.checks.diagnosis import Diagnosis, failed, ok, warning
from infra.checks.s3 import clock_finding
from infra.services import Services

MLFLOW = "MLflow"
TIMEOUT_SECONDS = 6.0
API = "/api/2.0/mlflow/"


class _Refused(Exception):
    def __init__(self, code: int, body: str) -> None:
        self.code, self.body = code, body
        super().__init__(f"HTTP {code}: {body[:200]}")


@dataclass(frozen=True)
class _Server:
    """MLflow's address, and how we say who we are (empty: not at all)."""

    uri: str
    user: str
    authorization: str

    def ask(self, path: str, body: Any = None, *, method: str = "GET", known: bool = True) -> tuple[str, HTTPMessage]:
        """(answer, headers). `known`: as the environment's user."""
        headers = {"Content-Type": "application/json"}
        if known and self.authorization:
            headers["Authorization"] = self.authorization
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.uri.rstrip("/") + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return answer.read(1_000_000).decode(errors="replace"), answer.headers
        except urllib.error.HTTPError as error:
            raise _Refused(error.code, error.read(2000).decode(errors="replace")) from None


def _server(services: Services) -> _Server:
    if services.mlflow_username:
        pair = f"{services.mlflow_username}:{services.mlflow_password}"
        return _Server(services.mlflow_uri, services.mlflow_username, f"Basic {b64encode(pair.encode()).decode()}")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")  # of a server that others run; MLflow reads it by itself
    return _Server(services.mlflow_uri, "", f"Bearer {token}" if token else "")


def check_mlflow(services: Services) -> list[Diagnosis]:
    """Reach it, read, write, compare versions and clocks, and see whether a stranger may read."""
    server = _server(services)
    uri = server.uri
    if not uri.startswith(("http://", "https://")):
        return [failed(MLFLOW, f"{uri.split(':')[0]}: is a file or database of one machine", "name an MLflow server")]
    try:
        _, headers = server.ask("/health")
        heard = time.time()
    except _Refused as error:
        return [failed(MLFLOW, f"{uri} answers, but not as MLflow does ({error})", "set MLFLOW_TRACKING_URI")]
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return [
            failed(
                MLFLOW,
                f"{uri} does not answer: {reason}",
                "start the server, or set MLFLOW_TRACKING_URI; for embedded services: agft stack up",
            )
        ]
    try:
        refused = _authorised(server)
        found = refused or [ok(MLFLOW, f"{uri}: reads and writes are allowed"), *_version(server)]
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return [
            failed(
                MLFLOW,
                f"{uri} is alive, and does not answer requests: {reason}",
                "look at the server's log and its database",
            )
        ]
    if date := headers.get("date"):
        found.append(clock_finding("MLflow", parsedate_to_datetime(date).timestamp() + 0.5 - heard, precision=1.0))
    return found


def _authorised(server: _Server) -> list[Diagnosis]:
    """Why we may not read or write, if so; a warning where anybody may."""
    uri, user = server.uri, server.user
    name = f"agft-doctor-{secrets.token_hex(8)}"
    try:
        server.ask(f"{API}experiments/search?max_results=1")
    except _Refused as error:
        if error.code == 401:
            who = f"refuses the password of user {user!r}" if user else "demands a user"
            return [failed(MLFLOW, f"{uri} {who} (401)", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")]
        if error.code == 403 and "host" in error.body.lower():
            return [
                failed(
                    MLFLOW,
                    f"{uri} refuses to be called by this name (403)",
                    "start the server with this name in MLFLOW_SERVER_ALLOWED_HOSTS",
                )
            ]
        return [failed(MLFLOW, f"{uri}: reading: {error}", "look at the server's log")]
    try:  # a registered model, unlike a run or an experiment, is really gone once it is deleted
        server.ask(f"{API}registered-models/create", {"name": name}, method="POST")
        server.ask(f"{API}registered-models/delete", {"name": name}, method="DELETE")
    except _Refused as error:
        return [
            failed(
                MLFLOW,
                f"{uri}: user {user!r} may read and not write ({error.code})",
                "give the user the right to create experiments, runs and registered models",
            )
        ]
    try:
        server.ask(f"{API}experiments/search?max_results=1", known=False)
    except _Refused:
        return []
    return [
        warning(
            MLFLOW,
            f"{uri}: reads and writes are allowed, to anybody who reaches it",
            "start the server with --app-name basic-auth",
        )
    ]


def _version(server: _Server) -> list[Diagnosis]:
    ours = importlib.metadata.version("mlflow")
    try:
        theirs = server.ask("/version")[0].strip()
    except _Refused:
        return []
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return [warning("versions", f"the MLflow server is {theirs}, here is {ours}", f"install mlflow=={ours} there")]
    return []
