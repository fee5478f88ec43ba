"""The notice board between a driver and its trials: decisions one way, nothing killed.

The scheduler's verdict is stored first and then put here; rank 0 of a trial reads it at a report boundary. The board's
name holds the study and the lease token, and the board dies with its driver: a worker that cannot reach it knows that
its driver is gone, keeps its checkpoint, and leaves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainers.schema.records import Answer, Decision

NAMESPACE = "agft"
RUNG_SLICE_SECONDS = 10.0  # the board is asked again so often, and a dead one is noticed
RUNG_PATIENCE_SECONDS = 3600.0
BOARD_ANSWER_SECONDS = 20.0
GONE = (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError)
log = logging.getLogger("agft")


class Board:
    """Verdicts by (trial, epoch), one word for everybody (`pause`), and which processes a trial consists of."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[int, int], str] = {}
        self.everybody = "continue"
        self.dropped: set[int] = set()
        self.stored: dict[int, int] = {}
        self.processes: dict[int, list[dict[str, Any]]] = {}
        self.changed = asyncio.Condition()

    async def publish(self, number: int, epoch: int, decision: str) -> None:
        """The verdict on one trial's epoch."""
        async with self.changed:
            self.verdicts[number, epoch] = decision
            self.changed.notify_all()

    async def forget(self, number: int) -> None:
        """A trial that was stopped is trained to its end after all."""
        self.verdicts = {key: word for key, word in self.verdicts.items() if key[0] != number}

    async def tell_everybody(self, decision: str) -> None:
        """`pause`: every trial keeps its checkpoint and leaves at its next report."""
        async with self.changed:
            self.everybody = decision
            self.changed.notify_all()

    async def drop(self, number: int) -> None:
        """A user takes the trial out: it leaves at its next report."""
        async with self.changed:
            self.dropped.add(number)
            self.changed.notify_all()

    async def arrive(self, number: int, process: dict[str, Any]) -> None:
        """A process of a trial has started; those of its role on the same node that are gone stay in the list."""
        self.processes.setdefault(number, []).append(process)

    async def depart(self, number: int) -> list[dict[str, Any]]:
        """The processes of a trial, which are forgotten: their successors will arrive."""
        return self.processes.pop(number, [])

    async def have(self, number: int, epoch: int) -> None:
        """The study has the records of a trial up to this epoch: they need not be sent again."""
        self.stored[number] = epoch

    async def answer(self, number: int, epoch: int, wait_seconds: float) -> Answer:
        """To a report: the verdict, and which records the driver has by now."""
        word = await self.verdict(number, epoch, wait_seconds)
        return Answer(Decision(word or "continue"), self.stored.get(number, 0))

    async def answer_at_rung(self, number: int, epoch: int, wait_seconds: float) -> Answer | None:
        """The same where the trial is judged; None if it is not yet."""
        word = await self.verdict(number, epoch, wait_seconds)
        return None if word is None else Answer(Decision(word), self.stored.get(number, 0))

    async def verdict(self, number: int, epoch: int, wait_seconds: float) -> str | None:
        """The decision on a report; waits for it at most `wait_seconds`. None: there is none."""
        deadline = time.monotonic() + wait_seconds
        async with self.changed:
            while True:
                earlier = [self.verdicts[number, e] for n, e in self.verdicts if n == number and e <= epoch]
                if "stop" in earlier or number in self.dropped:
                    return "stop"
                if self.everybody != "continue":
                    return self.everybody
                if (number, epoch) in self.verdicts:
                    return "continue"
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self.changed.wait(), timeout=left)
                except TimeoutError:
                    return None


def board_name(study: str, token: int) -> str:
    """Name of the board actor of one driver."""
    return f"agft-board/{study}/{token}"


def open_board(study: str, token: int) -> Any:
    """Start this driver's board; it is owned by the driver and ends with it, and on its node, so not before it."""
    actor = ray.remote(num_cpus=0, max_concurrency=1000)(Board)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(name=board_name(study, token), namespace=NAMESPACE, scheduling_strategy=here).remote()


def ask_board(name: str, number: int, rungs: Sequence[int], epoch: int) -> Answer:
    """The answer to a report that has just been made; called by rank 0 of a trial.

    At a rung it waits for the verdict, however busy the driver is: with an epoch more, what the study finds would
    depend on the clock. Without a board there is no driver any more: `pause`; nor is one that is silent for an hour.
    """
    deadline = time.monotonic() + RUNG_PATIENCE_SECONDS
    try:
        board = ray.get_actor(name, namespace=NAMESPACE)
        if epoch not in rungs:
            answer: Answer | None = ray.get(board.answer.remote(number, epoch, 0.0), timeout=BOARD_ANSWER_SECONDS)
            assert answer is not None
            return answer
        while time.monotonic() < deadline:
            asked = board.answer_at_rung.remote(number, epoch, RUNG_SLICE_SECONDS)
            if (answer := ray.get(asked, timeout=RUNG_SLICE_SECONDS + BOARD_ANSWER_SECONDS)) is not None:
                return answer
        log.warning("trial %s: no verdict on epoch %s; keeping the checkpoint and leaving", number, epoch)
        return Answer(Decision.PAUSE, 0)
    except GONE as error:
        log.warning(
            "trial %s: no driver answers (%s); keeping the checkpoint and leaving", number, type(error).__name__
        )
        return Answer(Decision.PAUSE, 0)


def announce(name: str, number: int, role: str) -> None:
    """Tell the driver that this process works for a trial (`role`: worker or driver), so that it can be ended should it
    hang; without a driver there is nobody to tell."""
    try:
        board = ray.get_actor(name, namespace=NAMESPACE)
        ray.get(board.arrive.remote(number, this_process(role)), timeout=BOARD_ANSWER_SECONDS)
    except GONE as error:
        log.warning("trial %s: no driver answers (%s)", number, type(error).__name__)


# Trials that have fallen silent: noticed by the clock, ended by the processes' own nodes.
#
# A rank that hangs in a collective or a file system answers no actor call, and takes its whole group with it. Its
# process is killed from outside; Ray Train then restarts the group from the newest checkpoint.

FIRST_LIMIT_SECONDS = 3600.0  # before anything is known about this study's pace
FLOOR_SECONDS = 120.0
PERIODS = 3.0  # silent for so many of the longest wait for a report seen in this study
KILL_ANSWER_SECONDS = 30.0


class Silence:
    """Since when each running trial has said nothing, against what this study's trials need between two reports.

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

    def report(self, number: int, clock: float) -> None:
        """A trial has spoken."""
        self.longest = max(self.longest, clock - self.heard.get(number, clock))
        self.heard[number] = clock

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


def this_process(role: str) -> dict[str, Any]:
    """What somebody else needs to end this process and no other."""
    return {
        "role": role, "node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }  # fmt: skip


def _kill(pid: int, started: float) -> bool:
    """SIGKILL to the process `pid` of this node, if it is still the one that started then."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) > 1:
            return False
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def kill_processes(processes: Sequence[Mapping[str, Any]]) -> int:
    """Kill processes that `this_process` described, each by a task on its own node; how many there were."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_kill)
    pending = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(each["node"], soft=False)).remote(
            each["pid"], each["started"]
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
        processes = ray.get(board.depart.remote(number))
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
                board.arrive.remote(number, each)
