"""Which process is meant: its number is used again, so what says when it began belongs to it. And what it may use."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import psutil

PROC = Path("/proc")


@cache
def boot() -> str:
    """Of this start of the machine."""
    place = PROC / "sys/kernel/random/boot_id"
    return place.read_text().strip()[:13] if place.exists() else f"{psutil.boot_time():.0f}"


def began(pid: int) -> str:
    """When a process began, by a clock that nobody sets: equal texts mean the same process.

    `psutil.Process.create_time` adds the time of the machine's start, which the kernel counts back from the clock of
    now: after a correction of the clock every process would be another one. Raises `psutil.NoSuchProcess`.
    """
    if not PROC.exists():
        return f"{boot()}.{psutil.Process(pid).create_time():.2f}"
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    ticks = text.rpartition(")")[2].split()[19]  # field 22 of proc_pid_stat(5); the name before may hold spaces
    return f"{boot()}.{ticks}"


def lives(pid: int, since: str) -> bool:
    """Whether the process that `began` then still runs; a zombie does not.

    Where the system hides other users' processes (`hidepid`), one of theirs with this number is taken for it.
    """
    try:
        return began(pid) == since and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (PermissionError, psutil.AccessDenied):
        return True
    except psutil.NoSuchProcess:
        return _hidden(pid)


def _hidden(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False  # ours, which we would have seen: it has just ended


def this() -> tuple[int, str]:
    """This process."""
    return os.getpid(), began(os.getpid())


def usable_cores() -> int:
    """Cores that this process may run on: `taskset`, Slurm and containers give it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
