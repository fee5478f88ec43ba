"""Where an evaluation's files are: a folder, or a prefix in S3. Whatever is written is there whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from infra import storage
from infra.errors import ChecksumMismatch, Conflict, ServiceError, Unsupported
from study.errors import StudyFailed, UserError
from trainers.files import FileLock, write_whole

log = logging.getLogger("agft")

S3 = "s3://"


class Place(Protocol):
    """Files by name (`units/tiny-letters/pgd-20/0000.safetensors`)."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None if there is none; `ValueError` if they are not those that were written."""

    def write(self, name: str, data: bytes) -> None:
        """The file with these bytes, in place of any other."""

    def at(self, name: str) -> str:
        """What to tell people."""


class Folder:
    """On a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{self.at(name)}: cannot be read: {error.strerror or error}") from error

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise StudyFailed(f"{path}: cannot be written: {error.strerror or error}; what is finished is kept, the "
                              "same command goes on") from error  # fmt: skip

    def at(self, name: str = "") -> str:
        return str(self.path / name)


class Prefix:
    """In S3, below an address without a closing slash."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def read(self, name: str) -> bytes | None:
        try:
            found = storage.get_bytes(self.at(name))
        except ChecksumMismatch as error:
            raise ValueError(str(error)) from error
        return None if found is None else found[0]

    def write(self, name: str, data: bytes) -> None:
        storage.put_bytes(self.at(name), data)

    def at(self, name: str = "") -> str:
        return f"{self.uri}/{name}" if name else self.uri


class Aside:
    """Reads what is in S3, writes beside it on the disk: for a dry run, which changes nothing."""

    def __init__(self, shared: Place, own: Folder) -> None:
        self.shared, self.own = shared, own

    def read(self, name: str) -> bytes | None:
        found = self.own.read(name)
        return self.shared.read(name) if found is None else found

    def write(self, name: str, data: bytes) -> None:
        self.own.write(name, data)

    def at(self, name: str = "") -> str:
        return self.own.at(name)


def place_at(out: str, name: str) -> Folder | Prefix:
    """The place called `name` below `out`, a folder or an s3:// address."""
    if out.startswith(S3):
        return Prefix(f"{out.rstrip('/')}/{name}")
    return Folder(Path(out).expanduser().absolute() / name)


# One process at a time evaluates into a place: a file lock in a folder, a lease in S3.
#
# The lease is an object that its owner writes anew every few seconds, each time over the version that it knows.
# Whoever finds one watches it for a while: if it changes, somebody lives; if not, its owner is dead and the lease
# is taken over, again over the version that was seen, so that of two heirs one gets it. No two clocks are compared.

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
        written: set[bytes] = set()  # beats whose answer was lost: one of them may be there
        while not left.wait(BEAT_SECONDS):
            content = _content()
            try:
                try:
                    etag = _put(uri, content, if_match=etag)
                except Conflict:
                    found = storage.get_bytes(uri)
                    if found is None or found[0] not in written:
                        lost.set()
                        return
                    etag = found[1]
                written.clear()
            except ServiceError:
                written.add(content)
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
            try:
                storage.delete(uri)
            except ServiceError as error:  # what was to be done is done, or has a reason of its own
                log.warning("the lease stays until it is found without a beat: %s", error)


def _content() -> bytes:
    return json.dumps(_me() | {"beat": secrets.token_hex(8)}).encode()


def _put(uri: str, content: bytes, **condition: Any) -> str:
    """Its ETag; a store that refuses conditions is as one that ignores them."""
    try:
        return storage.put_bytes(uri, content, **condition)
    except Unsupported:
        return storage.put_bytes(uri, content)


def _taken(place: Prefix, uri: str) -> str:
    """The ETag of our own lease, once whoever had it has been silent for long enough."""
    try:
        return _put(uri, _content(), if_absent=True)
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
            return _put(uri, _content(), if_absent=True)
        return _put(uri, _content(), if_match=found[1])
    except Conflict:
        raise _refusal(place, None) from None
