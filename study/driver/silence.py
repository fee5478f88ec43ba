"""Trials that have fallen silent: noticed by the clock, ended by the processes' own nodes.

A rank that hangs in a collective or a file system answers no actor call, and takes its whole group with it. Its
process is killed from outside; Ray Train then restarts the group from the newest checkpoint.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infra.process import began

log = logging.getLogger("agft")
FIRST_LIMIT_SECONDS = 3600.0  # before anything is known about this study's pace
FLOOR_SECONDS = 300.0  # signs come every few seconds, but not while a state is stored or a graph compiled
PERIODS = 3.0  # silent for so many of the longest wait for a word seen in this study
KILL_ANSWER_SECONDS = 30.0


class Silence:
    """Since when each running trial has said nothing, against what this study's trials need between two words: reports,
    and signs of life from inside an epoch.

    `fixed`: a limit in seconds instead of the measured one.
    """

    def __init__(self, fixed: float | None = None) -> None:
        self.fixed = fixed
        self.heard: dict[int, float] = {}
        self.kills: dict[int, int] = {}
        self.longest = 0.0

    def start(self, number: int, clock: float) -> None:
        """A trial begins, or goes on."""
        self.heard[number] = clock

    def hear(self, number: int, clock: float) -> None:
        """A trial has spoken."""
        if number not in self.heard:
            return
        self.longest = max(self.longest, clock - self.heard[number])
        self.heard[number] = clock

    def excuse(self, numbers: Iterable[int], clock: float) -> None:
        """They wait for a service: that is no silence of theirs."""
        self.heard.update({number: clock for number in numbers if number in self.heard})

    def end(self, number: int) -> None:
        """A trial is gone."""
        self.heard.pop(number, None)

    def limit(self, number: int) -> float:
        """Seconds that this trial may be silent; twice as many after each time that it was killed for it."""
        measured = max(FLOOR_SECONDS, PERIODS * self.longest) if self.longest else FIRST_LIMIT_SECONDS
        return float((self.fixed or measured) * 2 ** self.kills.get(number, 0))

    def overdue(self, clock: float) -> list[int]:
        """Trials that have been silent for longer than their limit; each is then given its time anew."""
        found = [number for number, since in self.heard.items() if clock - since > self.limit(number)]
        for number in found:
            self.kills[number] = self.kills.get(number, 0) + 1
            self.heard[number] = clock
        return found


def _kill(pid: int, since: str) -> bool:
    """SIGKILL to the process `pid` of this node, if it is still the one that began then."""
    try:
        if began(pid) != since:
            return False
        psutil.Process(pid).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def kill_processes(processes: Sequence[Mapping[str, Any]]) -> int:
    """Kill processes that `this_process` described, each by a task on its own node; how many there were."""
    task = ray.remote(num_cpus=0, max_retries=0)(_kill)
    pending = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(each["node"], soft=False)).remote(
            each["pid"], each["began"]
        )
        for each in processes
    ]
    deadline, killed = time.monotonic() + KILL_ANSWER_SECONDS, 0
    for reference in pending:
        try:
            killed += bool(ray.get(reference, timeout=max(0.1, deadline - time.monotonic())))
        except ray.exceptions.RayError as error:  # its node is gone, and the process with it
            log.warning("a silent process could not be reached: %s", type(error).__name__)
    return killed


def end_the_silent(silence: Silence, board: Any, clock: float, say: Callable[[str], None]) -> None:
    """Kill the workers of trials that have hung; the second time, or where no worker lives, the trial's own process."""
    for number in silence.overdue(clock):
        processes = board.ask("depart", number, otherwise=[])
        killed = kill_processes([each for each in processes if each["role"] == "worker"])
        whole = silence.kills[number] > 1 or not killed
        if whole:
            killed += kill_processes([each for each in processes if each["role"] != "worker"])
        say(
            f"trial {number:>3}  has said nothing for too long: {killed} of its processes ended; "
            "it goes on from its newest checkpoint"
        )
        for each in processes:
            if not whole and each["role"] != "worker":
                board.tell("arrive", number, each)
