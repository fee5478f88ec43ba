"""Ctrl-C, and `kill -INT` by a supervisor, are heard wherever a command was started."""

from __future__ import annotations

import signal
import threading


def hear_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt, also where it was ignored from the start.

    A script that starts a command by `&` has it ignore SIGINT, so that Ctrl-C ends the script alone. Python then sets
    no handler, and `kill -INT` does nothing, except where `agft run` has set its own. We listen all the same: to us an
    interrupt means to pause, or to end in good order, and the same command goes on. So a Ctrl-C that was meant for the
    script loses nothing, while a command that nobody can interrupt has to be killed. Who wants it out of a terminal's
    reach gives it a session of its own (`setsid`). SIGHUP, which `nohup` is about, is left as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may, and only it is interrupted
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, signal.default_int_handler)
