"""The endpoint that Prometheus scrapes: `/metrics` with a bearer token; nothing else, and nothing without it."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from infra.processes import write_private
from study.errors import SERVICE_ERRORS, UserError

__all__ = ["TOKEN_FILE", "MetricsServer", "kept_token"]

log = logging.getLogger("agft")
TOKEN_FILE = "metrics_token"
AWAY: tuple[type[Exception], ...] = (SQLAlchemyError, *SERVICE_ERRORS)


def kept_token(home: Path) -> str:
    """The home's token, made once, in a file of mode 0600 that Prometheus' `credentials_file` may name."""
    path = home / TOKEN_FILE
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text().strip()


class MetricsServer(ThreadingHTTPServer):
    """Answers GET /metrics with what `text` returns, to those who have the token; 503 while the database is away."""

    daemon_threads = True

    def __init__(self, bind: str, port: int, token: str, text: Callable[[], bytes]) -> None:
        self.token, self.text = token, text
        try:
            super().__init__((bind, port), _Handler)
        except OSError as error:
            raise UserError(f"--port: {bind}:{port} cannot be listened on: {error.strerror}") from None


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = 10  # of a client that says nothing
    server_version = "agft"
    sys_version = ""

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""

    def do_GET(self) -> None:
        """`/metrics`; everything else is not there."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            self._answer(401, b"a token is demanded\n", {"WWW-Authenticate": "Bearer"})
        elif self.path.partition("?")[0] != "/metrics":
            self._answer(404, b"/metrics\n")
        else:
            self._metrics()

    def _metrics(self) -> None:
        try:
            body = self.server.text()
        except AWAY as error:
            log.warning("metrics: the study database does not answer (%s)", type(error).__name__)
            self._answer(503, b"the study database does not answer\n")
            return
        self._answer(200, body, {"Content-Type": CONTENT_TYPE_LATEST})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
