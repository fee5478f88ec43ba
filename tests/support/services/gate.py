"""A gate before an HTTP service: it passes requests on, or it is shut, or it has one of the bad habits of `HABITS`.

Clients are given the gate's address for the service's own. The Host that they name is passed on, since S3 signs it;
MLflow takes none but its own (`own_host`).
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

__all__ = ["HABITS", "Gate", "Refusal", "gate"]

SLOW_SECONDS, LOOK_SECONDS = 3.0, 0.1
UPLOADS, WRITES = ("PUT", "POST"), ("PUT", "POST", "DELETE")
CONDITIONS = ("if-match", "if-none-match")
CHECKSUMS = ("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")


@dataclass(frozen=True)
class Refusal:
    """What an endpoint of S3 answers by itself; `methods`: to which requests, () for all."""

    status: int
    code: str
    message: str
    methods: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


# `slow` takes 3 s for every request, `hang` answers none until it ends, `cut` breaks off uploads in the middle.
HABITS: dict[str, Refusal | None] = {
    "slow": None,
    "hang": None,
    "cut": None,
    "busy": Refusal(503, "SlowDown", "Please reduce your request rate."),
    "expired": Refusal(400, "ExpiredToken", "The provided token has expired."),
    "full": Refusal(507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold.", UPLOADS),
    "readonly": Refusal(403, "AccessDenied", "Access Denied.", WRITES),
    "no-checksum": Refusal(400, "InvalidArgument", "Unsupported header 'x-amz-checksum'.", UPLOADS),
    "no-conditions": Refusal(501, "NotImplemented", "A header implies functionality that is not implemented.", UPLOADS),
    "redirect": Refusal(302, "", "", (), (("Location", "https://sso.example.invalid/login"),)),
    "region": Refusal(301, "PermanentRedirect", "The bucket must be addressed using the specified endpoint."),
}
OF_A_HOP = ("transfer-encoding", "content-length", "connection", "expect")
OURS = (*OF_A_HOP, "date", "server")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    gate: Gate

    def handle_error(self, *_: Any) -> None: ...  # a client that left, or was left


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None: ...

    def setup(self) -> None:
        super().setup()
        self.server.gate.clients.add(self.connection)

    def finish(self) -> None:
        self.server.gate.clients.discard(self.connection)
        super().finish()

    def _answer(self, status: int, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _refusal(self) -> Refusal | None:
        """By the habit of now, of this request."""
        habit = self.server.gate.habit
        refusal = HABITS.get(habit)
        if refusal is None or (refusal.methods and self.command not in refusal.methods):
            return None
        asked = {"no-checksum": CHECKSUMS, "no-conditions": CONDITIONS}.get(habit, "")
        return refusal if any(name.lower().startswith(asked) for name in self.headers) else None

    def _refuse(self, refusal: Refusal) -> None:
        text = f"<Error><Code>{refusal.code}</Code><Message>{escape(refusal.message)}</Message></Error>".encode()
        body = text if refusal.code else b""
        self.server.gate.refused += 1
        headers = [("Content-Type", "application/xml"), *refusal.headers, ("Content-Length", str(len(body)))]
        self._answer(refusal.status, body, headers)

    def _pass(self) -> None:
        habit, uploads = self.server.gate.habit, self.command in UPLOADS
        if habit == "cut" and uploads:  # half of it has arrived
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            raise ConnectionAbortedError
        body = self._body()
        if habit == "slow":
            time.sleep(SLOW_SECONDS)
        while self.server.gate.habit == "hang":
            time.sleep(LOOK_SECONDS)
        if refusal := self._refusal():
            self._refuse(refusal)
            return
        upstream = http.client.HTTPConnection(self.server.gate.host, self.server.gate.port, timeout=120)
        try:
            own = self.server.gate.own_host
            upstream.putrequest(self.command, self.path, skip_host=not own, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in (*OF_A_HOP, *(["host"] if own else [])):
                    upstream.putheader(name, value)
            if body or uploads:
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in OURS]
        self._answer(answer.status, data, [*headers, *([("Content-Length", length)] if length else [])])

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _pass


class Gate:
    """`habit`: "" or one of `HABITS`, as of the next request; `refused`: how many it has answered by itself."""

    def __init__(self, upstream: str, *, bind: str = "127.0.0.1", own_host: bool = False) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname, upstream
        assert parts.port, upstream
        self.host, self.port, self.habit = parts.hostname, parts.port, ""
        self.own_host, self.refused = own_host, 0
        self.clients: set[socket.socket] = set()
        self.place = (bind, 0)
        self.server: _Server | None = None
        self.open()

    @property
    def address(self) -> str:
        """For clients."""
        return f"http://{self.place[0]}:{self.place[1]}"

    def open(self) -> None:
        """Listen, on the same port as before."""
        self.server = _Server(self.place, _Handler)
        self.server.gate, self.place = self, self.server.server_address[:2]  # type: ignore[assignment]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def shut(self) -> None:
        """Connections break, new ones are refused."""
        if self.server is None:
            return
        self.server.shutdown()
        self.server.server_close()
        self.server = None
        for client in list(self.clients):
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has left


@contextmanager
def gate(upstream: str, *, bind: str = "127.0.0.1", own_host: bool = False) -> Iterator[Gate]:
    """An open gate before `upstream`, which is `http://HOST:PORT`."""
    made = Gate(upstream, bind=bind, own_host=own_host)
    try:
        yield made
    finally:
        made.shut()
