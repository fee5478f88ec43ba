"""Which process drives a study, and whether it still lives."""

from __future__ import annotations

import functools
import os
import re
import socket
from pathlib import Path
from typing import Any

from infra import process
from study.errors import UserError


class LeaseHeld(UserError):
    """Another driver drives this study. `seconds` until its lease ends if it is not renewed."""

    def __init__(self, study: str, owner: str, seconds: float, *, local: bool) -> None:
        self.study, self.owner, self.seconds, self.local = study, owner, seconds, local
        host, pid = owner.split("|")[:2]
        super().__init__(f"study {study!r} is being driven by process {pid} on {host}; one driver at a time")


def owner_identity() -> str:
    """This process, so that another can tell whether it still lives: host, pid, start time, and whose pid that is."""
    pid, began = process.this()
    return f"{socket.gethostname()}|{pid}|{began}|{_numbering()}"


def owner_is_gone(owner: str) -> bool:
    """Whether `owner` was a process of this host that has ended; false where that cannot be told from here."""
    host, pid, began, numbering = owner.split("|")
    ours = _numbering()
    if numbering != ours:
        return host == socket.gethostname() and _of_an_earlier_start(numbering, ours)
    return not process.lives(int(pid), began)


def is_local(owner: str) -> bool:
    """Whether `owner` is, or was, a process of this machine that has a number here."""
    return owner.rpartition("|")[2] == _numbering()


@functools.cache
def _numbering() -> str:
    """Machine, its start, and process namespace: where a pid means the same. A host's name does not say it: machines
    are called alike, and a container may be called like its host."""
    namespace = Path("/proc/self/ns/pid")
    pids = re.sub(r"\D", "", os.readlink(namespace)) if namespace.exists() else ""
    machine = Path("/etc/machine-id")
    return f"{machine.read_text().strip()[:12] if machine.exists() else ''}.{process.boot()}.{pids}"


def _of_an_earlier_start(theirs: str, ours: str) -> bool:
    """Whether a pid was one of this machine before it was started again."""
    machine, start, _ = theirs.split(".")
    return bool(machine) and machine == ours.split(".")[0] and start != ours.split(".")[1]


def is_driven(row: Any, clock: float) -> bool:
    """Whether a study's row has a lease that still runs at `clock`, of a driver that may be alive."""
    return bool(row.lease_owner) and (row.lease_expires or 0) > clock and not owner_is_gone(row.lease_owner)
