"""Ray Jobs over the cluster's dashboard: submit a driver, look at it, stop it, read what it printed.

Everything that is sent can be read by whoever may use the Jobs API: no secret belongs into it. The token that the
cluster demands comes from `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` or, with `RAY_AUTH_MODE=token`, `~/.ray/auth_token`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from infra.errors import Conflict, ServiceError, UserError

TIMEOUT_SECONDS = 10.0
VERSION = "/api/version"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's client takes them instead of the address it is given


@dataclass(frozen=True)
class Job:
    """A job as the cluster tells it. `status`: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    identity: str
    status: str
    message: str

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""
        return self.status in ENDED


@dataclass(frozen=True)
class Node:
    """A live node."""

    address: str
    is_head: bool
    resources: dict[str, float]


def dashboard_address(given: str | None, environ: Mapping[str, str]) -> str:
    """The dashboard's URL: as given, or from `RAY_API_SERVER_ADDRESS`, or an http `RAY_ADDRESS`."""
    named = {"--address": given, **{name: environ.get(name) for name in OVERRIDING}}
    for source, address in named.items():
        if not address:
            continue
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname:
            if parts.username or parts.password:
                raise UserError(
                    f"{source}: an address with a user or password; the token comes from RAY_AUTH_TOKEN_PATH"
                )
            return address.rstrip("/")
        if source != "RAY_ADDRESS":
            raise UserError(f"{source}: {address!r}: expected the cluster's dashboard, like http://HEAD:8265")
    raise UserError("--address: where is the cluster? Name its dashboard, like http://HEAD:8265")


def is_loopback(host: str | None) -> bool:
    """Whether `host` means this machine by loopback, whatever machine that is."""
    return host is not None and (host in ("localhost", "::1", "0.0.0.0") or host.startswith("127."))


class Jobs:
    """The Jobs API at `address`. Every method raises `ServiceError` when the cluster does not answer or refuses."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._token = _token(os.environ)

    def check(self) -> str:
        """The cluster's Ray version, which must be ours: a driver and its cluster are one program."""
        found = self._ask(VERSION)
        version = found.get("ray_version") if isinstance(found, dict) else None
        if not version:
            raise ServiceError(f"{self.address} answers, but is no Ray dashboard")
        ours = importlib.metadata.version("ray")
        if version != ours:
            raise ServiceError(f"{self.address} runs Ray {version}, this terminal has {ours}: install the same version")
        return str(version)

    def nodes(self) -> list[Node]:
        """The live nodes."""
        rows = self._ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        return [
            Node(row["node_ip"], bool(row["is_head_node"]), dict(row["resources_total"]))
            for row in rows
            if row["state"] == "ALIVE"
        ]

    def is_here(self) -> bool:
        """Whether every node is this machine: its dashboard by one of our addresses, and all nodes at them.

        A dashboard on loopback alone may be the end of a tunnel.
        """
        ours = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
        host = urlsplit(self.address).hostname
        reached = is_loopback(host) or host == socket.gethostname() or host in ours
        return reached and all(is_loopback(node.address) or node.address in ours for node in self.nodes())

    def of(self, prefix: str) -> list[Job]:
        """Jobs whose submission id begins with `prefix`."""
        rows = self._ask("/api/jobs/")
        return [_job(row) for row in rows if (row["submission_id"] or "").startswith(prefix)]

    def job(self, identity: str) -> Job | None:
        """One job, or None if the cluster knows it not (any more)."""
        return next((job for job in self.of(identity) if job.identity == identity), None)

    def output(self, identity: str) -> str:
        """What the job has printed so far."""
        return str(self._ask(f"/api/jobs/{identity}/logs")["logs"])

    def submit(
        self, identity: str, command: str, *, environment: Mapping[str, str], working_dir: Path | None = None
    ) -> None:
        """Start `command` under `identity`; `Conflict` if there is such a job already.

        `environment` is shown by the Jobs API. `working_dir` is sent and becomes the folder that it runs in.
        """
        if self.job(identity) is not None:
            raise Conflict(f"{self.address}: there is a job {identity} already")
        runtime: dict[str, Any] = {"env_vars": dict(environment)}
        if working_dir is not None:
            runtime["working_dir"] = str(working_dir)
        try:
            with _without(OVERRIDING):
                from ray.job_submission import JobSubmissionClient

                client = JobSubmissionClient(self.address, headers=self._headers())
                client.submit_job(entrypoint=command, submission_id=identity, runtime_env=runtime)
        except (RuntimeError, ConnectionError, OSError, ValueError) as error:
            if self.job(identity) is not None:
                raise Conflict(f"{self.address}: there is a job {identity} already") from None
            raise ServiceError(f"{self.address} did not take the job: {_short(error)}") from error

    def stop(self, identity: str) -> None:
        """Send the job's process the signal that its environment names."""
        self._ask(f"/api/jobs/{identity}/stop", method="POST")

    def forget(self, identity: str) -> None:
        """Take a job that has ended out of the cluster's list, with what it printed."""
        self._ask(f"/api/jobs/{identity}", method="DELETE")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _ask(self, path: str, *, method: str = "GET") -> Any:
        request = urllib.request.Request(self.address + path, headers=self._headers(), method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ServiceError(f"{self.address} {self._refusal(error.code)}") from None
            if path == VERSION:
                raise ServiceError(f"{self.address} answers ({error.code}), but is no Ray dashboard") from None
            raise ServiceError(f"{self.address}{path}: HTTP {error.code}: {_short(error.read().decode())}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(f"no answer from a Ray dashboard at {self.address}: {_short(reason)}") from None
        except ValueError:
            raise ServiceError(f"{self.address} answers, but is no Ray dashboard") from None

    def _refusal(self, code: int) -> str:
        if not self._token:
            return (
                f"demands a token ({code}): set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that the "
                "cluster's nodes were started with"
            )
        return f"refuses the token ({code}): RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is not the cluster's"


def _token(environ: Mapping[str, str]) -> str | None:
    if token := environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    if not path and environ.get("RAY_AUTH_MODE") == "token":
        path = str(Path.home() / ".ray" / "auth_token")
        if not Path(path).exists():
            return None
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"RAY_AUTH_TOKEN_PATH: {path}: cannot be read: {_short(error)}") from None


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _job(row: Mapping[str, Any]) -> Job:
    return Job(row["submission_id"], row["status"], row.get("message") or "")


def _short(error: object) -> str:
    return " ".join(str(error).split())[:400]
