"""Which process drives a study, and whether it still lives."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil

from study.errors import UserError


class LeaseHeld(UserError):
    """Another driver drives this study. `seconds` until its lease ends if it is not renewed."""

    def __init__(self, study: str, owner: str, seconds: float, *, local: bool) -> None:
        self.study, self.owner, self.seconds, self.local = study, owner, seconds, local
        host, pid = owner.split("|")[:2]
        super().__init__(f"study {study!r} is being driven by process {pid} on {host}; one driver at a time")


def owner_identity() -> str:
    """This process, so that another can tell whether it still lives: host, pid, start time."""
    return f"{socket.gethostname()}|{os.getpid()}|{psutil.Process().create_time():.2f}"


def owner_is_gone(owner: str) -> bool:
    """Whether `owner` was a process of this host that has ended."""
    host, pid, started = owner.split("|")
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - float(started)) > 1
    except psutil.NoSuchProcess:
        return True


def is_local(owner: str) -> bool:
    """Whether `owner` is, or was, a process of this machine."""
    return owner.split("|")[0] == socket.gethostname()


def is_driven(row: Any, clock: float) -> bool:
    """Whether a study's row has a lease that still runs at `clock`, of a driver that may be alive."""
    return bool(row.lease_owner) and (row.lease_expires or 0) > clock and not owner_is_gone(row.lease_owner)
