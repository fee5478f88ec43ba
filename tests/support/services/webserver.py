"""A web server on this machine that can be of several kinds of little help."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Server", "serving"]


class Server(ThreadingHTTPServer):
    """Gives `files`; remembers which ranges were asked for, and can be of several kinds of little help."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        self.ranges = True  # continues where it is asked to
        self.cut = 0  # closes the connection after so many bytes
        self.pause = 0.0  # seconds after every 1000 bytes
        self.until = threading.Event()  # after 1000 bytes an answer waits for it, a minute at most
        self.until.set()
        self.statuses: list[int] = []  # of the next answers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.asked.append((name, first))
        content = self.server.files.get(name)
        if self.server.statuses or content is None:
            self.send_error(self.server.statuses.pop(0) if self.server.statuses else 404)
            return
        size = len(content)
        if not self.server.ranges:
            first = 0
        if first >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - first))
        self.end_headers()
        wanted = content[first : first + self.server.cut] if self.server.cut else content[first:]
        for start in range(0, len(wanted), 1000):
            self.wfile.write(wanted[start : start + 1000])
            time.sleep(self.server.pause)
            self.server.until.wait(60)


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
