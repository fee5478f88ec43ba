"""Whether MLflow can be used: reached, authorised, written to. Leaves nothing behind."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from typing import Any

from infra.checks.finding import Finding, failed, ok, warning
from infra.checks.s3 import clock_finding

MLFLOW = "MLflow"
TIMEOUT_SECONDS = 6.0
API = "/api/2.0/mlflow/"


class _Refused(Exception):
    def __init__(self, code: int, body: str) -> None:
        self.code, self.body = code, body
        super().__init__(f"HTTP {code}: {body[:200]}")


def _ask(path: str, body: Any = None, *, method: str = "GET", known: bool = True) -> tuple[str, HTTPMessage]:
    """(answer, headers). `known`: with the environment's user."""
    headers = {"Content-Type": "application/json"}
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if known and user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    elif known and token:
        headers["Authorization"] = f"Bearer {token}"
    url = os.environ["MLFLOW_TRACKING_URI"].rstrip("/") + path
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return answer.read(1_000_000).decode(errors="replace"), answer.headers
    except urllib.error.HTTPError as error:
        raise _Refused(error.code, error.read(2000).decode(errors="replace")) from None


def check_mlflow() -> list[Finding]:
    """Reach it, read, write, compare versions and clocks, and see whether a stranger may read."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if not uri.startswith(("http://", "https://")):
        return [failed(MLFLOW, f"{uri.split(':')[0]}: is a file or database of one machine", "name an MLflow server")]
    try:
        _, headers = _ask("/health")
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
        refused = _authorised(uri)
        found = refused or [ok(MLFLOW, f"{uri}: reads and writes are allowed"), *_version()]
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


def _authorised(uri: str) -> list[Finding]:
    """Why we may not read or write, if so; a warning where anybody may."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    name = f"agft-doctor-{secrets.token_hex(8)}"
    try:
        _ask(f"{API}experiments/search?max_results=1")
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
        _ask(f"{API}registered-models/create", {"name": name}, method="POST")
        _ask(f"{API}registered-models/delete", {"name": name}, method="DELETE")
    except _Refused as error:
        return [
            failed(
                MLFLOW,
                f"{uri}: user {user!r} may read and not write ({error.code})",
                "give the user the right to create experiments, runs and registered models",
            )
        ]
    try:
        _ask(f"{API}experiments/search?max_results=1", known=False)
    except _Refused:
        return []
    return [
        warning(
            MLFLOW,
            f"{uri}: reads and writes are allowed, to anybody who reaches it",
            "start the server with --app-name basic-auth",
        )
    ]


def _version() -> list[Finding]:
    ours = importlib.metadata.version("mlflow")
    try:
        theirs = _ask("/version")[0].strip()
    except _Refused:
        return []
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return [warning("versions", f"the MLflow server is {theirs}, here is {ours}", f"install mlflow=={ours} there")]
    return []
