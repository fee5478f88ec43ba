"""The notice board between a driver and its trials: decisions one way, nothing killed.

The scheduler's verdict is stored first and then put here; rank 0 of a trial reads it at a report boundary. The board's
name holds the study and the lease token, and the board dies with its driver: a worker that cannot reach it knows that
its driver is gone, keeps its checkpoint, and leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["NAMESPACE", "announce", "ask_board", "board_name", "open_board"]

NAMESPACE = "agft"
RUNG_WAIT_SECONDS = 2.0
BOARD_ANSWER_SECONDS = 20.0
log = logging.getLogger("agft")


class Board:
    """Verdicts by (trial, epoch), one word for everybody (`pause`), and which processes a trial consists of."""

    def __init__(self) -> None:
        self.verdicts: dict[tuple[int, int], str] = {}
        self.everybody = "continue"
        self.dropped: set[int] = set()
        self.processes: dict[int, list[dict[str, Any]]] = {}
        self.changed = asyncio.Condition()

    async def publish(self, number: int, epoch: int, decision: str) -> None:
        """The verdict on one trial's epoch."""
        async with self.changed:
            self.verdicts[number, epoch] = decision
            self.changed.notify_all()

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

    async def verdict(self, number: int, epoch: int, wait_seconds: float) -> str:
        """The decision on a report; waits for it at most `wait_seconds`, then the trial goes on."""
        deadline = time.monotonic() + wait_seconds
        async with self.changed:
            while True:
                earlier = [self.verdicts[number, e] for n, e in self.verdicts if n == number and e <= epoch]
                if "stop" in earlier or number in self.dropped:
                    return "stop"
                if self.everybody != "continue":
                    return self.everybody
                left = deadline - time.monotonic()
                if (number, epoch) in self.verdicts or left <= 0:
                    return "continue"
                try:
                    await asyncio.wait_for(self.changed.wait(), timeout=left)
                except TimeoutError:
                    return "continue"


def board_name(study: str, token: int) -> str:
    """Name of the board actor of one driver."""
    return f"agft-board/{study}/{token}"


def open_board(study: str, token: int) -> Any:
    """Start this driver's board; it is owned by the driver and ends with it, and on its node, so not before it."""
    actor = ray.remote(num_cpus=0, max_concurrency=1000)(Board)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(name=board_name(study, token), namespace=NAMESPACE, scheduling_strategy=here).remote()


def ask_board(name: str, number: int, epoch: int, *, at_rung: bool) -> str:
    """`continue`, `stop` or `pause` for a report that has just been made; called by rank 0 of a trial.

    Without a board there is no driver any more: `pause`.
    """
    wait = RUNG_WAIT_SECONDS if at_rung else 0.0
    try:
        board = ray.get_actor(name, namespace=NAMESPACE)
        return str(ray.get(board.verdict.remote(number, epoch, wait), timeout=BOARD_ANSWER_SECONDS))
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        log.warning(
            "trial %s: no driver answers (%s); keeping the checkpoint and leaving", number, type(error).__name__
        )
        return "pause"


def announce(name: str, number: int, process: dict[str, Any]) -> None:
    """Tell the driver that `process` works for a trial; without a driver there is nobody to tell."""
    try:
        board = ray.get_actor(name, namespace=NAMESPACE)
        ray.get(board.arrive.remote(number, process), timeout=BOARD_ANSWER_SECONDS)
    except (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        log.warning("trial %s: no driver answers (%s)", number, type(error).__name__)
