"""Jobs on Ray actors that keep models in memory: handed out one by one, and handed out again when a worker is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from study.errors import StudyFailed, UserError
from study.evaluation.worker import EvaluationWorker

MOST_LOSSES = 3  # workers that one job may take with it
WAIT_SECONDS = 1.0
SILENCE_SECONDS = 60.0  # without a result before we look whether there is a worker at all


@dataclass(frozen=True)
class Hands:
    """How many workers, and what each one holds."""

    workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Of torch, in each worker."""
        return max(1, int(self.cpus))

    def __str__(self) -> str:
        return f"{self.workers} of {self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def hands_for(
    nodes: Sequence[Mapping[str, float]], jobs: int, *, workers: int | None, cpus: float | None, gpus: float | None
) -> Hands:
    """What was asked for, else: one worker a GPU where there are any, else workers of up to four cores each.

    `nodes` are the resources of each of the cluster's. Never more workers than jobs. Raises `UserError` with the
    numbers for what can never fit.
    """
    all_cpus, all_gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    if gpus is None:
        gpus = 1.0 if all_gpus >= 1 else 0.0
    if cpus is None:
        share = all_cpus * gpus / all_gpus if gpus and all_gpus else all_cpus / (workers or 1)
        cpus = float(max(1, min(4, int(share))))
    needs = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need > 0}
    room = sum(min(int(node.get(name, 0.0) / need + 1e-9) for name, need in needs.items()) for node in nodes)
    if room < (workers or 1):
        raise UserError(
            f"--workers: {workers or 1} of {cpus:g} CPU and {gpus:g} GPU each; the cluster's {len(nodes)} node(s) with "
            f"{all_cpus:g} CPU and {all_gpus:g} GPU in all have room for {room}"
        )
    return Hands(max(1, min(workers or room, jobs)), cpus, gpus)


@dataclass(frozen=True)
class Job:
    """A call of one of the worker's methods. Jobs of one group share what a worker has in memory."""

    name: str
    group: tuple[str, ...]
    cost: float
    method: str
    arguments: tuple[Any, ...]


@dataclass
class _Worker:
    actor: Any
    up: Any  # reference of its first answer
    ready: bool = False
    group: tuple[str, ...] | None = None
    busy: bool = False


@dataclass
class Pool:
    """`weights`: SHA-256 -> where Ray keeps the weights file; `say` gets remarks; `tick` is called often."""

    hands: Hands
    weights: Mapping[str, Any]
    say: Callable[[str], None]
    tick: Callable[[], None] = lambda: None
    losses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._workers = [self._hire() for _ in range(self.hands.workers)]

    def _hire(self) -> _Worker:
        actor = ray.remote(num_cpus=self.hands.cpus, num_gpus=self.hands.gpus, max_restarts=0)(EvaluationWorker)
        handle = actor.remote(dict(self.weights), self.hands.threads, self.hands.gpus)
        return _Worker(handle, handle.hello.remote())

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in self._workers:
            ray.kill(worker.actor)

    def run(self, jobs: Sequence[Job], done: Callable[[Job, Any], None]) -> None:
        """Every job once, in no particular order; `done` gets each result as it comes.

        Only workers that have started get a job: where others hold the cluster, fewer of ours do all the work, and two
        pools that each have some workers never wait for each other. Ends with what a job raised; with `StudyFailed`
        when a job has taken MOST_LOSSES workers with it.
        """
        waiting: list[Job] = list(jobs)
        running: dict[Any, tuple[_Worker, Job]] = {}
        heard = time.monotonic()
        while waiting or running:
            for worker in self._workers:
                if worker.ready and not worker.busy and waiting:
                    job = best_job(waiting, worker.group, [each.group for each in self._workers if each is not worker])
                    waiting.remove(job)
                    worker.busy, worker.group = True, job.group
                    running[getattr(worker.actor, job.method).remote(*job.arguments)] = worker, job
            starting = {worker.up: worker for worker in self._workers if not worker.ready}
            ready, _ = ray.wait([*running, *starting], num_returns=1, timeout=WAIT_SECONDS)
            self.tick()
            for reference in ready:
                heard = time.monotonic()
                if reference in starting:
                    starting[reference].ready, _ = self._answer(reference, starting[reference], "starting workers")
                    continue
                worker, job = running.pop(reference)
                worker.busy = False
                answered, result = self._answer(reference, worker, job.name)
                if answered:
                    done(job, result)
                else:
                    waiting.append(job)
            if time.monotonic() - heard > SILENCE_SECONDS:
                heard = time.monotonic()
                self._explain_silence()

    def _answer(self, reference: Any, worker: _Worker, what: str) -> tuple[bool, Any]:
        """(True, what a worker answered), or (False, None) when it is gone and another one takes its place."""
        try:
            return True, ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:  # killed, out of memory, lost with its node
            self._mourn(worker, what, error)
            return False, None

    def _mourn(self, worker: _Worker, what: str, error: Exception) -> None:
        self.losses[what] += 1
        reason = " ".join(str(error).split())[:300]
        if self.losses[what] >= MOST_LOSSES:
            raise StudyFailed(
                f"{what}: {MOST_LOSSES} workers died of it, the last one so: {reason}. What is finished is kept; "
                "fewer images together (--batch-size) or more memory for a worker may help"
            )
        self.say(f"a worker is gone ({reason}); another one takes its place")
        ray.kill(worker.actor)
        self._workers[self._workers.index(worker)] = self._hire()

    def _explain_silence(self) -> None:
        """Say what a cluster lacks in which not one worker has come up."""
        if any(worker.ready for worker in self._workers):
            return
        free, there = ray.available_resources(), ray.cluster_resources()
        kinds = [("CPU", self.hands.cpus), *([("GPU", self.hands.gpus)] if self.hands.gpus else [])]
        need = " and ".join(f"{amount:g} {kind}" for kind, amount in kinds)
        left = " and ".join(f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind}" for kind, _ in kinds)
        short = any(free.get(kind, 0) < amount for kind, amount in kinds)
        why = "; the others are held by workers that are still starting, or by somebody else" if short else ""
        self.say(f"no worker has started yet: each needs {need}, and {left} of the cluster are free{why}")


def best_job(waiting: Sequence[Job], group: tuple[str, ...] | None, others: Sequence[tuple[str, ...] | None]) -> Job:
    """For a free worker that has `group` in memory: a job of that group; else of one that no other worker has; else
    any. The dearest group first, and its dearest job."""
    left: Counter[tuple[str, ...]] = Counter()
    for job in waiting:
        left[job.group] += job.cost  # type: ignore[assignment]

    def rank(job: Job) -> tuple[bool, bool, float, float]:
        return job.group == group, job.group not in others, left[job.group], job.cost

    return max(waiting, key=rank)
