"""What is printed where nobody reads any more, and what a closed terminal tells a driver."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from study.console import Clock
from study.control.logs import _Log, _Tee
from study.driver.run import _signals

PRINTS = """
import sys
from study.console import Clock, say
clock = Clock()
sys.stdin.readline()
for number in range(1000):
    clock(f"line {number} " + 100 * "x")
say("the end")
"""


def closed_pipe() -> IO[str]:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def closed_terminal() -> IO[str]:
    master, terminal = pty.openpty()
    os.close(master)
    return os.fdopen(terminal, "w", buffering=1)


@pytest.mark.parametrize("closed", [closed_pipe, closed_terminal])
def test_who_stops_reading_ends_nothing_and_the_log_goes_on(
    closed: Callable[[], IO[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, path = closed(), tmp_path / "driver.log"
    with pytest.raises(OSError, match=r"\[Errno (5|32)\]"):
        stream.write("one\n")
    log, stream = _Log(path), closed()
    monkeypatch.setattr(sys, "stdout", _Tee(stream, log))
    for number in range(3):
        Clock()(f"epoch {number}")
    log.close()
    stream.close()
    assert [line[-7:] for line in path.read_text().splitlines()] == ["epoch 0", "epoch 1", "epoch 2"]


def test_a_command_whose_output_was_cut_off_ends_as_it_would_have() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == "the end\n"
    assert process.wait() == 0


def hung_up(before: Any) -> bool:
    """Whether a driver, with what SIGHUP did before, pauses when its terminal is closed."""
    kept = signal.signal(signal.SIGHUP, before)
    driver: Any = SimpleNamespace(interrupted=False, say=lambda _: None)
    try:
        with _signals(driver):
            for _ in range(2):  # the kernel's and the shell's
                os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, kept)
    return bool(driver.interrupted)


def test_a_closed_terminal_pauses_a_study_unless_it_was_started_to_outlive_it() -> None:
    assert hung_up(lambda number, frame: pytest.fail("nobody listened"))
    assert not hung_up(signal.SIG_IGN)
