"""Telling a web address that something happened to a study: it finished, failed, paused, or has a new best trial.

Address and secret come from the environment and are shown nowhere. A receiver that is slow, broken or gone costs the
study nothing: messages wait in a short queue on a thread of their own, the oldest go first when it is full.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from study.errors import UserError

__all__ = ["EVENTS", "Notifier"]

log = logging.getLogger("agft")
EVENTS = ("finished", "failed", "paused", "new_best")
TIMEOUT_SECONDS = 10.0
PAUSES_SECONDS = (1.0, 4.0, 15.0)  # before the second, third and fourth try
WAITING = 100
SIGNATURE = "X-Agft-Signature"


class Notifier:
    """Sends `{event, study, state, trials, best, time}` as JSON by POST. Without a URL every call does nothing.

    With a secret, the header `X-Agft-Signature` is `sha256=` and the hex HMAC-SHA256 of the body's bytes.
    """

    def __init__(
        self, url: str | None, *, secret: str | None = None, timeout: float = TIMEOUT_SECONDS,
        pauses: Sequence[float] = PAUSES_SECONDS,
    ) -> None:  # fmt: skip
        if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise UserError("AGFT_WEBHOOK: not an address that begins with http:// or https:// and a host")
        self._url, self._secret, self._timeout, self._pauses = url, secret, timeout, tuple(pauses)
        self._waiting: queue.Queue[bytes] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """By `AGFT_WEBHOOK` and `AGFT_WEBHOOK_SECRET`; one that does nothing if there is no address."""
        return cls(environ.get("AGFT_WEBHOOK") or None, secret=environ.get("AGFT_WEBHOOK_SECRET") or None)

    def __repr__(self) -> str:
        return f"Notifier({'on' if self._url else 'off'})"  # the address may hold a secret

    def __getstate__(self) -> None:
        raise TypeError("a Notifier holds secrets and is not pickled; make another one from the environment")

    def send(self, event: str, payload: Mapping[str, Any]) -> None:
        """Queue a message and return at once. `payload`: `study`, `state`, `trials`, `best`, JSON values."""
        assert event in EVENTS, event
        if not self._url or self._closing.is_set():
            return
        body = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **payload})
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="agft-webhook", daemon=True)
            self._thread.start()
        while True:
            try:
                self._waiting.put_nowait(body.encode())
                return
            except queue.Full:
                self._drop_oldest()

    def close(self, seconds: float = 5.0) -> int:
        """Wait so long for what is queued; returns how many messages were not delivered."""
        if self._thread is None:
            return 0
        deadline = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        self._closing.set()
        return self._waiting.unfinished_tasks

    def _drop_oldest(self) -> None:
        try:
            self._waiting.get_nowait()
            self._waiting.task_done()
            log.warning("the webhook is too slow; its oldest message is dropped")
        except queue.Empty:
            return  # the thread took it meanwhile, so there is room

    def _work(self) -> None:
        while not self._closing.is_set():
            body = self._waiting.get()
            try:
                self._deliver(body)
            finally:
                self._waiting.task_done()

    def _deliver(self, body: bytes) -> None:
        reason = ""
        for pause in (0.0, *self._pauses):
            if self._closing.wait(pause):
                return
            reason, again = self._post(body)
            if not again:
                break
        if reason:
            log.warning("the webhook did not take a message: %s", reason)

    def _post(self, body: bytes) -> tuple[str, bool]:
        """What went wrong, without the address ('' if nothing), and whether another try may help."""
        assert self._url is not None
        headers = {"Content-Type": "application/json", "User-Agent": "agft-study"}
        if self._secret:
            headers[SIGNATURE] = "sha256=" + hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self._timeout):
                return "", False
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code}", error.code >= 500 or error.code == 429
        except (OSError, ValueError, HTTPException) as error:  # their texts may hold the address
            return type(error).__name__, True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # a signed body goes where the user said, nowhere else


_OPENER = urllib.request.build_opener(_NoRedirect)
