"""A small S3 that knows no conditions, as some stores do: it takes every put. Checks no signature."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

__all__ = ["forgetful_s3"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, status: int, body: bytes = b"", etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    def do_PUT(self) -> None:
        body = self._body()
        self.server.objects[self._key()] = body
        self._answer(200, etag=f'"{hashlib.md5(body).hexdigest()}"')

    def _body(self) -> bytes:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return raw
        size, _, rest = raw.partition(b"\r\n")  # one chunk is all that is sent here
        return rest[: int(size.split(b";")[0], 16)]

    def do_DELETE(self) -> None:
        self.server.objects.pop(self._key(), None)
        self._answer(204)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            bucket, prefix = self._key().rstrip("/"), query.get("prefix", [""])[0]
            keys = [
                key.partition("/")[2] for key in sorted(self.server.objects) if key.startswith(f"{bucket}/{prefix}")
            ]
            rows = "".join(f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>" for key in keys)
            self._answer(200, f"<ListBucketResult><Name>{bucket}</Name>{rows}</ListBucketResult>".encode())
        elif self._key() in self.server.objects:
            self._answer(200, self.server.objects[self._key()])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")


@contextmanager
def forgetful_s3() -> Iterator[tuple[str, dict[str, bytes]]]:
    """(address, its objects by bucket/key)."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        objects: dict[str, bytes] = {}
        server.objects = objects  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", objects
        finally:
            server.shutdown()
            thread.join()
