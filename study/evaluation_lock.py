"""One process at a time evaluates into a place: a file lock in a folder, a lease in S3.

The lease is an object that its owner writes anew every few seconds, each time over the version that it knows. Whoever
finds one watches it for a while: if it changes, somebody lives; if not, its owner is dead and the lease is taken over,
again over the version that was seen, so that of two heirs one gets it. No two clocks are compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from infra import storage
from infra.errors import Conflict, ServiceError
from study.errors import StudyFailed, UserError
from study.evaluation_place import Folder, Place, Prefix
from trainers.filelock import FileLock

__all__ = ["alone_in"]

BEAT_SECONDS = 4.0
WATCH_SECONDS = 13.0  # three beats, and some for a slow one
POLL_SECONDS = 0.5
LOCK, OWNER, LEASE = "lock", "owner.json", "lease.json"

Check = Callable[[], None]


@contextmanager
def alone_in(place: Place) -> Iterator[Check]:
    """Alone there until left, else `UserError`. The check raises `StudyFailed` once another process has taken over."""
    if isinstance(place, Folder):
        with _lock_file(place):
            yield lambda: None
    else:
        assert isinstance(place, Prefix), place
        with _lease(place) as check:
            yield check


def _me() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _refusal(place: Place, owner: bytes | None) -> UserError:
    who = json.loads(owner) if owner else {}
    by = f"process {who['pid']} on {who['host']}" if {"pid", "host"} <= set(who) else "another process"
    return UserError(f"{place.at('')}: {by} is evaluating into it; wait until it has finished, or end it")


@contextmanager
def _lock_file(place: Folder) -> Iterator[None]:
    try:
        place.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.path / LOCK)
        if not lock.acquire():
            raise _refusal(place, place.read(OWNER))
    except OSError as error:
        raise UserError(f"--out: {place.path}: {error.strerror or error}") from None
    try:
        place.write(OWNER, json.dumps(_me()).encode())
        yield
    finally:
        lock.release()


@contextmanager
def _lease(place: Prefix) -> Iterator[Check]:
    uri = place.at(LEASE)
    etag = _taken(place, uri)
    left, lost = threading.Event(), threading.Event()

    def beat() -> None:
        nonlocal etag
        while not left.wait(BEAT_SECONDS):
            try:
                etag = storage.put_bytes(uri, _content(), if_match=etag)
            except Conflict:
                lost.set()
                return
            except ServiceError:
                continue  # storage is away: so it is for an heir

    def check() -> None:
        if lost.is_set():
            raise StudyFailed(f"{place.at()}: another process has taken over; what is finished is kept")

    thread = threading.Thread(target=beat, name="agft-lease", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        left.set()
        thread.join()
        if not lost.is_set():
            storage.delete(uri)


def _content() -> bytes:
    return json.dumps(_me() | {"beat": secrets.token_hex(8)}).encode()


def _taken(place: Prefix, uri: str) -> str:
    """The ETag of our own lease, once whoever had it has been silent for long enough."""
    try:
        return storage.put_bytes(uri, _content(), if_absent=True)
    except Conflict:
        found = storage.get_bytes(uri)
    deadline = time.monotonic() + WATCH_SECONDS
    while found is not None:
        time.sleep(POLL_SECONDS)
        now = storage.get_bytes(uri)
        if now is not None and now[1] != found[1]:
            raise _refusal(place, now[0])
        if now is None or time.monotonic() > deadline:
            break
    try:
        if found is None or now is None:
            return storage.put_bytes(uri, _content(), if_absent=True)
        return storage.put_bytes(uri, _content(), if_match=found[1])
    except Conflict:
        raise _refusal(place, None) from None
