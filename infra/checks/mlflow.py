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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from typing import Any

from infra.checks.diagnosis import Diagnosis, Failed, check, ok, unless_proxy, warning
from infra.checks.s3 import clock_finding
from infra.errors import UserError
from infra.services import Services

MLFLOW = "MLflow"
TIMEOUT_SECONDS = 6.0
API = "/api/2.0/mlflow/"
EXPERIMENTS = f"{API}experiments/search?max_results=1"
AWAY = (OSError, HTTPException, ValueError)


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
            opener = urllib.request.build_opener()  # the proxies of now; urlopen's are those of its first call
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return answer.read(1_000_000).decode(errors="replace"), answer.headers
        except urllib.error.HTTPError as error:
            raise _Refused(error.code, error.read(2000).decode(errors="replace")) from None


def _server(services: Services) -> _Server:
    if services.mlflow_username:
        pair = f"{services.mlflow_username}:{services.mlflow_password}"
        return _Server(services.mlflow_uri, services.mlflow_username, f"Basic {b64encode(pair.encode()).decode()}")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")  # of a server that others run; MLflow reads it by itself
    return _Server(services.mlflow_uri, "", f"Bearer {token}" if token else "")


@check
def check_mlflow(services: Services) -> Iterator[Diagnosis]:
    """Reach it, read, write, compare versions and clocks, and see whether a stranger may read."""
    server = _server(services)
    uri = server.uri
    if not uri.startswith(("http://", "https://")):
        raise Failed(MLFLOW, f"{uri.split(':')[0]}: is a file or database of one machine", "name an MLflow server")
    try:
        _, headers = server.ask("/health")
        heard = time.time()
    except _Refused as error:
        remedy = unless_proxy(uri, "set MLFLOW_TRACKING_URI")
        raise Failed(MLFLOW, f"{uri} answers, but not as MLflow does ({error})", remedy) from None
    except AWAY as error:
        remedy = unless_proxy(uri, "start the server, or set MLFLOW_TRACKING_URI; for embedded services: agft stack up")
        raise Failed(MLFLOW, f"{uri} does not answer: {getattr(error, 'reason', error)}", remedy) from None
    if date := headers.get("date"):
        yield clock_finding("MLflow", parsedate_to_datetime(date).timestamp() + 0.5 - heard, precision=1.0)
    try:
        _check_rights(server)
        yield _openness(server)
        yield from _version(server)
    except AWAY as error:
        detail = f"{uri} is alive, and does not answer requests: {getattr(error, 'reason', error)}"
        raise Failed(MLFLOW, detail, "look at the server's log and its database") from None


def require_mlflow(services: Services, say: Callable[[str], None]) -> None:
    """Before a study starts: `UserError` where a server refuses us for good, or is none of MLflow's.

    One that is away is only mentioned: the study sends its records once it answers.
    """
    server = _server(services)
    try:
        _may_read(server)
    except Failed as failure:
        raise UserError(f"{failure}: {failure.diagnosis.remedy}") from None
    except AWAY as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
        say(unless_proxy(server.uri, f"MLflow at {server.uri} does not answer ({reason}): its records are sent later"))


def _may_read(server: _Server) -> None:
    """`Failed` unless we may read; one of `AWAY` where nobody answers, or only for now not."""
    uri, user = server.uri, server.user
    try:
        text, _ = server.ask(EXPERIMENTS)
        if not text.lstrip().startswith("{"):
            raise _not_mlflow(uri)
    except _Refused as error:
        if error.code >= 500 or error.code in (408, 429):
            raise OSError(str(error)) from None
        if error.code == 401:
            who = f"refuses the password of user {user!r}" if user else "demands a user"
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            raise Failed(MLFLOW, f"{uri} {who} (401)", remedy) from None
        if error.code == 403 and "host" in error.body.lower():
            remedy = "start the server with this name in MLFLOW_SERVER_ALLOWED_HOSTS"
            raise Failed(MLFLOW, f"{uri} refuses to be called by this name (403)", remedy) from None
        if error.body.lstrip().startswith("<") or error.code == 404:
            raise _not_mlflow(uri) from None
        raise Failed(MLFLOW, f"{uri}: reading: {error}", "look at the server's log") from None


def _not_mlflow(uri: str) -> Failed:
    return Failed(MLFLOW, f"{uri} answers, but not as MLflow does", unless_proxy(uri, "set MLFLOW_TRACKING_URI"))


def _check_rights(server: _Server) -> None:
    """`Failed` unless we may read and write."""
    _may_read(server)
    uri, user = server.uri, server.user
    name = f"agft-doctor-{secrets.token_hex(8)}"
    try:  # a registered model, unlike a run or an experiment, is really gone once it is deleted
        server.ask(f"{API}registered-models/create", {"name": name}, method="POST")
        server.ask(f"{API}registered-models/delete", {"name": name}, method="DELETE")
    except _Refused as error:
        remedy = "give the user the right to create experiments, runs and registered models"
        raise Failed(MLFLOW, f"{uri}: user {user!r} may read and not write ({error.code})", remedy) from None


def _openness(server: _Server) -> Diagnosis:
    """Whether a stranger may read as well."""
    try:
        server.ask(EXPERIMENTS, known=False)
    except _Refused:
        return ok(MLFLOW, f"{server.uri}: reads and writes are allowed")
    detail = f"{server.uri}: reads and writes are allowed, to anybody who reaches it"
    return warning(MLFLOW, detail, "start the server with --app-name basic-auth")


def _version(server: _Server) -> Iterator[Diagnosis]:
    ours = importlib.metadata.version("mlflow")
    try:
        theirs = server.ask("/version")[0].strip()
    except _Refused:
        return
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        yield warning("versions", f"the MLflow server is {theirs}, here is {ours}", f"install mlflow=={ours} there")
