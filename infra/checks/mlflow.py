"""Whether MLflow can be used: reached, authorised, written to. Leaves nothing behind."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from infra.checks.diagnosis import Diagnosis, Failed, check, ok, unless_proxy, warning
from infra.checks.s3 import clock_finding
from infra.errors import UserError
from infra.services import Services
from infra.tracking.calls import why

MLFLOW = "MLflow"
TIMEOUT_SECONDS = 6.0
API = "/api/2.0/mlflow/"
EXPERIMENTS = f"{API}experiments/search?max_results=1"
AWAY = (OSError, ValueError)  # of requests all that it raises
UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "suitable TLS CA certificate bundle", "doesn't match")
CREDENTIALS = "~/.mlflow/credentials"


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

    def ask(
        self, path: str, body: Any = None, *, method: str = "GET", known: bool = True
    ) -> tuple[str, Mapping[str, str]]:
        """(answer, headers), asked as MLflow's client asks: its certificates, proxies of now, no repetition.

        `known`: as the environment's user. `Failed` where no later request of that client can succeed either.
        """
        import requests

        url = self.uri.rstrip("/") + path
        headers = {"Authorization": self.authorization} if known and self.authorization else {}
        try:
            answer = requests.request(
                method, url, json=body, headers=headers, timeout=TIMEOUT_SECONDS, verify=_verified(),
                cert=os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None, allow_redirects=method == "GET",
                auth=None if known else lambda request: request,  # else one of ~/.netrc
            )  # fmt: skip
        except OSError as error:
            if any(sign in str(error) for sign in UNTRUSTED):
                detail = f"{self.uri}: its certificate is not trusted here: {why(error)[:200]}"
                remedy = "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its authority, or correct its name"
                raise Failed(MLFLOW, detail, remedy) from None
            raise
        if urlsplit(answer.url)[:2] != urlsplit(url)[:2]:  # a POST that is sent elsewhere becomes a GET
            self._moved(answer.url, path)
        if not answer.ok or answer.is_redirect:
            raise _Refused(answer.status_code, answer.text[:2000])
        return answer.text[:1_000_000], answer.headers

    def _moved(self, url: str, path: str) -> None:
        there, here = urlsplit(url), urlsplit(self.uri)
        if (there.scheme, there.hostname) != (here.scheme, here.hostname):
            place = f"{there.scheme}://{there.netloc}"
            remedy = unless_proxy(self.uri, "set MLFLOW_TRACKING_URI")
            if url.endswith(path):
                place, remedy = url.removesuffix(path), f"write {url.removesuffix(path)}"
            detail = f"{self.uri} only leads to {place}, and what MLflow writes is lost on the way"
            raise Failed(MLFLOW, detail, remedy)


def _verified() -> bool | str:
    """Whose certificates MLflow's client trusts; True: those of REQUESTS_CA_BUNDLE, or the usual ones."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def _server(services: Services) -> _Server:
    user, password = services.mlflow_username, services.mlflow_password
    if not user and os.path.exists(os.path.expanduser(CREDENTIALS)):
        from mlflow.utils.credentials import read_mlflow_creds  # 2.5 s

        user, password = (found or "" for found in read_mlflow_creds())
    if user and password:
        pair = b64encode(f"{user}:{password}".encode()).decode()
        return _Server(services.mlflow_uri, user, f"Basic {pair}")
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
        raise Failed(MLFLOW, f"{uri} does not answer: {why(error)[:200]}", remedy) from None
    if date := headers.get("date"):
        yield clock_finding("MLflow", parsedate_to_datetime(date).timestamp() + 0.5 - heard, precision=1.0)
    try:
        _check_rights(server)
        yield _openness(server)
        yield from _version(server)
    except AWAY as error:
        detail = f"{uri} is alive, and does not answer requests: {why(error)[:200]}"
        raise Failed(MLFLOW, detail, "look at the server's log and its database") from None


def require_mlflow(services: Services, say: Callable[[str], None], *, experiment: str) -> None:
    """Before a study starts: `UserError` where a server refuses us for good, or is none of MLflow's, or does not let us
    write to the experiment of this name.

    One that is away is only mentioned: the study sends its records once it answers.
    """
    server = _server(services)
    try:
        _may_read(server)
        _may_write(server, experiment)
    except Failed as failure:
        raise UserError(f"{failure}: {failure.diagnosis.remedy}") from None
    except AWAY as error:
        text = f"MLflow at {server.uri} does not answer ({why(error)[:200]}): its records are sent later"
        say(unless_proxy(server.uri, text))


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


def _may_write(server: _Server, experiment: str) -> None:
    """`Failed` where rights are lacking to make runs in the experiment, or to make it.

    Rights are looked at before anything else of a request: one that makes no sense is refused with 403, or with 400.
    """
    try:
        text, _ = server.ask(f"{API}experiments/get-by-name?experiment_name={quote(experiment)}")
        number = json.loads(text)["experiment"]["experiment_id"]
        path, body = "runs/create", {"experiment_id": number, "start_time": "never", "tags": "none"}
    except _Refused as error:
        if error.code == 403:
            raise _no_rights(server, f"the experiment {experiment!r}", error) from None
        path, body = "experiments/create", {"name": ""}
    except (ValueError, KeyError):
        return
    try:
        server.ask(f"{API}{path}", body, method="POST")
    except _Refused as error:
        if error.code == 403:
            raise _no_rights(server, f"runs in the experiment {experiment!r}", error) from None


def _no_rights(server: _Server, what: str, error: _Refused) -> Failed:
    detail = f"{server.uri}: user {server.user!r} may not write {what} ({error.code})"
    return Failed(MLFLOW, detail, "have its owner give the user the permission EDIT")


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
