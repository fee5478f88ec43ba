"""A small S3 in memory whose answers a test may choose, request by request. Checks no signature."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree

import pytest

__all__ = ["Answer", "Asked", "SmallS3", "refused", "small_s3"]

SERVED = "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass(frozen=True)
class Asked:
    """A request; header names in small letters; `path`: /BUCKET/KEY."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """`cut`: the connection ends after that many bytes of the body; -1: before anything is answered."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


def refused(status: int, code: str, message: str = "x", more: str = "") -> Answer:
    """As S3 words it."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml"})


class SmallS3:
    """`objects`: bytes and metadata headers by /BUCKET/KEY; `answers`: asked first, None for the usual answer."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.asked: list[Asked] = []
        self.answers: Callable[[Asked], Answer | None] = lambda _: None
        self.lock = threading.Lock()
        self.address = ""

    def once(self, answer: Answer, wanted: Callable[[Asked], bool] = lambda _: True) -> None:
        """The next request that is `wanted` gets this answer."""
        self.times(1, answer, wanted)

    def times(self, count: int, answer: Answer, wanted: Callable[[Asked], bool] = lambda _: True) -> None:
        """As many of the next requests get this answer."""
        left = [answer] * count

        def answers(asked: Asked) -> Answer | None:
            with self.lock:
                return left.pop() if left and wanted(asked) else None

        self.answers = answers

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        return self.answers(asked) or getattr(self, f"_{asked.method.lower()}")(asked)

    def _put(self, asked: Asked) -> Answer:
        with self.lock:
            there = self.objects.get(asked.path)
            if asked.headers.get("if-none-match") == "*" and there is not None:
                return refused(412, "PreconditionFailed")
            if "if-match" in asked.headers and (there is None or etag(there[0]) != asked.headers["if-match"]):
                return refused(412, "PreconditionFailed")
            if source := asked.headers.get("x-amz-copy-source"):
                self.objects[asked.path] = self.objects["/" + unquote(source).lstrip("/")]
                return Answer(200, b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
            kept = {name: value for name, value in asked.headers.items() if name.startswith("x-amz-meta-")}
            self.objects[asked.path] = (asked.body, kept)
        return Answer(200, b"", {"ETag": etag(asked.body)})

    def _delete(self, asked: Asked) -> Answer:
        self.objects.pop(asked.path, None)
        return Answer(204)

    def _post(self, asked: Asked) -> Answer:
        assert "delete" in asked.query, asked
        bucket = asked.path.strip("/").split("/")[0]
        for each in ElementTree.fromstring(asked.body).iter():
            if each.tag.endswith("Key"):
                self.objects.pop(f"/{bucket}/{each.text}", None)
        return Answer(200, b"<DeleteResult></DeleteResult>")

    def _get(self, asked: Asked) -> Answer:
        if "list-type" not in asked.query:
            return self._head(asked)
        start = f"{asked.path.rstrip('/')}/"
        rows = "".join(
            f"<Contents><Key>{quote(key.removeprefix(start))}</Key><ETag>{etag(body)}</ETag><Size>{len(body)}</Size>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key, (body, _) in sorted(self.objects.items())
            if key.startswith(start + asked.query.get("prefix", ""))
        )
        return Answer(
            200,
            f"<ListBucketResult><Name>{start}</Name><EncodingType>url</EncodingType>{rows}</ListBucketResult>".encode(),
        )

    def _head(self, asked: Asked) -> Answer:
        if asked.path not in self.objects:
            return refused(404, "NoSuchKey")
        body, kept = self.objects[asked.path]
        return Answer(200, body, {"ETag": etag(body), "Last-Modified": SERVED, **kept})


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None: ...

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body, parts = self.rfile.read(int(headers.get("content-length") or 0)), urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        answer = self.server.store.answer(Asked(self.command, unquote(parts.path), query, headers, body))
        self.close_connection = answer.cut is not None
        if answer.cut == -1:
            return
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.cut])

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve


@contextmanager
def small_s3(monkeypatch: pytest.MonkeyPatch, bucket: str = "lab") -> Iterator[SmallS3]:
    """One that this process's environment points at, and at nothing else."""
    import os

    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        store = server.store = SmallS3()  # type: ignore[attr-defined]
        store.address = f"http://127.0.0.1:{server.server_address[1]}"
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        given = {"ENDPOINT_URL": store.address, "REGION": "us-east-1", "ACCESS_KEY_ID": "AK", "SECRET_ACCESS_KEY": "SK"}
        nowhere = {"CONFIG_FILE": os.devnull, "SHARED_CREDENTIALS_FILE": os.devnull, "EC2_METADATA_DISABLED": "true"}
        for name, value in (given | nowhere).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AGFT_BUCKET", bucket)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
