"""The live page's server: on loopback, for who knows the home's user and password; nothing without them.

    GET  /                        all studies
    GET  /studies/NAME            a study's page
    GET  /studies/NAME/parts      what of it has changed since `?known=VERSION` (204: nothing)
    GET  /studies/NAME/log        the end of what its drivers printed
    POST /studies/NAME/ACTION     a button; needs the page's own token, which no other site can read

A request whose Host is not ours is refused, so that no name of somebody else's can be made to mean this address.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from sqlalchemy.exc import SQLAlchemyError

from study.errors import SERVICE_ERRORS, USER_ERRORS, UserError
from study.live.doing import Doing
from study.live.listing import studies_page
from study.live.snapshot import Snapshot
from study.store.store import StudyStore

log = logging.getLogger("agft")
USERNAME = "agft"
LONGEST_BODY = 10_000  # bytes
AWAY: tuple[type[Exception], ...] = (SQLAlchemyError, *SERVICE_ERRORS)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self' data: blob:; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Server(ThreadingHTTPServer):
    """Serves the studies of one database. `doing` does what the buttons ask for."""

    daemon_threads = True

    def __init__(self, port: int, url: str, password: str, doing: Doing, *, bind: str = "127.0.0.1") -> None:
        self.url, self.doing = url, doing
        self.wanted = b"Basic " + base64.b64encode(f"{USERNAME}:{password}".encode())
        self.token = secrets.token_urlsafe(24)
        self._snapshots: dict[tuple[str, int], Snapshot] = {}
        self._lock = threading.Lock()
        try:
            super().__init__((bind, port), Handler)
        except OSError as error:
            raise UserError(f"--port: {bind}:{port} cannot be listened on: {error.strerror}") from None
        self.hosts = {f"{name}:{self.server_port}" for name in (bind, "127.0.0.1", "localhost")}

    def address(self, study: str | None = None) -> str:
        """Of the page of all studies, or of one."""
        base = f"http://{self.server_address[0]!s}:{self.server_port}"
        return f"{base}/" if study is None else f"{base}/studies/{quote(study, safe='')}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has left is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def snapshot(self, name: str) -> Snapshot:
        """The study's; `UserError` for one that is not there (any more)."""
        store = StudyStore(self.url, name)
        key = name, store.load().created_ms
        with self._lock:
            return self._snapshots.setdefault(key, Snapshot(store))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30  # of a client that says nothing
    server_version = "agft"
    sys_version = ""

    def log_message(self, format: str, *args: object) -> None:
        """Requests are no news."""

    def do_GET(self) -> None:
        """A page, its parts, or a log."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """A button."""
        self._answered(self._post)

    def _answered(self, answer: Any) -> None:
        given = self.headers.get("Authorization", "").encode()
        if self.headers.get("Host", "") not in self.server.hosts:
            self._send(421, "this server answers to its own address alone\n", "text/plain", close=True)
        elif not hmac.compare_digest(given, self.server.wanted):
            self._send(401, "a user and a password are needed\n", "text/plain", close=True,
                       more={"WWW-Authenticate": 'Basic realm="agft"'})  # fmt: skip
        else:
            try:
                answer()
            except USER_ERRORS as error:
                self._said(404 if self.command == "GET" else 409, str(error))
            except AWAY as error:
                log.warning("agft ui: %s: %s", type(error).__name__, error)
                self._said(503, f"failed: {error}")

    def _get(self) -> None:
        address = urlsplit(self.path)
        match [unquote(part) for part in address.path.split("/")[1:]]:
            case [""]:
                self._send(200, studies_page(self.server.url), "text/html")
            case ["studies", name]:
                self._send(200, self.server.snapshot(name).page(self.server.token), "text/html")
            case ["studies", name, "parts"]:
                version, parts = self.server.snapshot(name).now()
                same = parse_qs(address.query).get("known") == [version]
                self._send(204 if same else 200, "" if same else parts, "application/json", more={"X-Version": version})
            case ["studies", name, "log"]:
                self._send(200, self.server.doing.log(StudyStore(self.server.url, name)), "text/plain")
            case _:
                self._send(404, "there is no such page\n", "text/plain")

    def _post(self) -> None:
        given = self.headers.get("X-AGFT-Token", "").encode()
        length = self.headers.get("Content-Length", "")
        if not hmac.compare_digest(given, self.server.token.encode()):
            self._send(403, json.dumps({"said": "this page is of an earlier server: load it again"}),
                       "application/json", close=True)  # fmt: skip
        elif not length.isdigit() or int(length) > LONGEST_BODY:
            self._send(413, json.dumps({"said": "a request of a button is short"}), "application/json", close=True)
        else:
            body = self.rfile.read(int(length))
            match [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]:
                case ["studies", name, action]:
                    store = StudyStore(self.server.url, name)
                    store.load()
                    self._said(200, self.server.doing.do(store, action, asked(body)))
                case _:
                    self._send(404, "there is no such page\n", "text/plain")

    def _said(self, status: int, text: str) -> None:
        self._send(status, json.dumps({"said": text}), "application/json")

    def _send(
        self, status: int, text: str, kind: str, *, close: bool = False, more: dict[str, str] | None = None
    ) -> None:
        body = text.encode()
        self.send_response(status)
        headers = {
            **HEADERS,
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            **(more or {}),
        }
        if close:  # its body was not read
            headers["Connection"] = "close"
            self.close_connection = True
        for name, value in headers.items():
            if not (status == 204 and name.startswith("Content-")):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def asked(body: bytes) -> dict[str, int]:
    """What a button says: whole numbers from 0 on by their name; `UserError` for anything else."""
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(type(value) is int and value >= 0 for value in found.values()):
        raise UserError(f"a button says whole numbers, not {body[:80]!r}")
    return found
