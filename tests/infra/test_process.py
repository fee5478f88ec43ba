"""A process is told from another one by a clock that nobody sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra import process
from infra.cluster import cluster
from infra.stack import processes
from study.store.lease import owner_identity, owner_is_gone


def test_a_process_is_the_same_after_the_systems_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel then counts back to another time of the machine's start, which psutil adds."""
    me, owner, before = process.this(), owner_identity(), psutil.Process().create_time()
    real = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: real + 7)
    assert psutil.Process().create_time() == pytest.approx(before + 7, abs=0.5)
    assert processes.alive(me)
    assert process.this() == me
    assert not owner_is_gone(owner)


def test_a_process_that_ended_or_is_a_zombie_does_not_live_and_a_number_alone_says_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = process.began(child.pid)
    assert process.lives(child.pid, since)
    assert not process.lives(child.pid, process.began(os.getpid()))
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert not process.lives(child.pid, since)
    child.wait()
    assert not process.lives(child.pid, since)
    with pytest.raises(psutil.NoSuchProcess):
        process.began(child.pid)


def test_a_name_with_spaces_and_brackets_is_read_past() -> None:
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) (b 1 2', 0, 0, 0); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    while psutil.Process(child.pid).name() != "a) (b 1 2":
        pass
    assert abs(int(process.began(child.pid).split(".")[1]) - int(process.this()[1].split(".")[1])) < 1_000_000
    assert process.lives(child.pid, process.began(child.pid))
    child.kill()
    child.wait()


@pytest.mark.parametrize("level", [1, 2])
def test_a_process_of_another_user_that_the_system_hides_lives(
    level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `hidepid=1` its files cannot be read, with 2 they are not there; that it may not be signalled is known."""

    def read_text(path: Path, **_: object) -> str:
        raise PermissionError(path)

    def kill(pid: int, number: int) -> None:
        raise PermissionError if pid == 7 else ProcessLookupError

    since = process.began(os.getpid())
    if level == 1:
        monkeypatch.setattr(Path, "read_text", read_text)
    else:
        monkeypatch.setattr(process, "PROC", tmp_path)
    monkeypatch.setattr(os, "kill", kill)
    assert process.lives(7, since)
    assert level == 1 or not process.lives(8, since)


def test_only_the_cores_that_a_process_may_run_on_are_counted_by_us_and_by_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert process.usable_cores() == 1
        assert cluster._usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert process.usable_cores() == len(before)
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 0.5)  # what Ray finds of a container's share
    assert cluster._usable_cpus() == 1, "a trial could never start"
