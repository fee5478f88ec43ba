"""What runs inside a Ray Train worker: `train` with its one way out, the report, wired to Ray.

The only file of this package that knows Ray. It knows neither storage nor the study: whoever starts the workers hands
over a few functions (`Wiring`), picklable by reference.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray.train.torch
import torch
from ray.train.v2._internal.execution.context import get_train_context

from trainers import distributed, leaving
from trainers.device import out_of_memory, usable
from trainers.errors import OF_EVERY_TRIAL, Evicted, Interrupted, UserError
from trainers.life import every
from trainers.model.weights import CheckpointError
from trainers.schema.records import At, Decision, Ending, Progress, Report, Weights
from trainers.training.loop import Outcome, train
from trainers.training.update import NonFinite
from trainers.trial_config import TrialConfig, outside_entries
from trainers.wiring import Restored, Wiring

Done = TypeVar("Done")

SIGN_SECONDS = 10.0
FOLDER = "agft-trial-"


def train_on_worker(settings: dict[str, Any]) -> Ending:
    """Train one trial; how it ended is the same on every rank.

    What the run itself did wrong (a non-finite loss; impossible input or out of memory on a single worker) is an
    outcome, and so is a service that stays away; everything else is raised, so that Ray Train tears the group down and
    starts again from the newest state.
    """
    started = time.monotonic()
    config = TrialConfig.model_validate(settings["config"])
    wiring: Wiring = settings["wiring"]
    try:
        with leaving.at_work():
            outcome = _run(config, wiring, threads=int(settings["threads"]), gpus=float(settings["gpus"]))
        return Ending(outcome=outcome, seconds=time.monotonic() - started)
    except Interrupted as error:
        lost, seconds = isinstance(error, Evicted), time.monotonic() - started
        return Ending(outcome="interrupted", message=str(error), lost=lost, seconds=seconds)
    except NonFinite as error:  # agreed on by all ranks, since the loss is all-reduced
        return Ending.failed("non-finite", str(error), time.monotonic() - started)
    except UserError as error:
        if distributed.world_size() > 1 or isinstance(error, CheckpointError):
            raise  # a file may be missing on one machine only, and the other ranks wait in a collective
        found = Ending.failed("invalid", str(error), time.monotonic() - started)
        return found.model_copy(update={"of_every_trial": isinstance(error, OF_EVERY_TRIAL)})
    except Exception as error:
        if distributed.world_size() > 1 or not out_of_memory(error):
            raise  # with several, the other ranks wait in a collective: the group must go
        return Ending.failed("out-of-memory", str(error), time.monotonic() - started)


def evicted() -> bool:
    """Whether this process is to end: by SIGTERM, or as Ray drains a node of its group."""
    try:
        preempted = get_train_context().preemption_context.preemption_info is not None
    except RuntimeError:  # no run of Ray Train, and so no node that it could drain
        preempted = False
    return preempted or leaving.told()


def tidy() -> None:
    """Free what a trial has left in this process, so that the next one finds it as new.

    Graphs of `torch.compile` go too: a piece of code has a limited number of them, and beyond it a compiled trial would
    be an eager one. Compiling again is quick, from the cache on the disk.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _together(step: Callable[[], Done]) -> Done:
    """A step on every rank; `Interrupted` on all of them if it was on one, so that none waits for it."""
    interrupted: list[Interrupted] = []
    with _noted(interrupted):
        done = step()
    if int(distributed.all_reduce_sum(torch.tensor([len(interrupted)]))):
        raise interrupted[0] if interrupted else Interrupted("another rank was interrupted")
    return done


def _agreed(restored: Restored | None) -> Restored | None:
    """What every rank has restored; `Interrupted` on all of them where it is not the same."""
    kept = None if restored is None else (restored.latest.sha256, restored.best and restored.best.sha256)
    mine = int(hashlib.sha256(repr(kept).encode()).hexdigest()[:15], 16)
    if distributed.any_rank(mine != distributed.broadcast_int(mine)):
        raise Interrupted("the ranks have read different states from storage")
    return restored


@contextlib.contextmanager
def _noted(interrupted: list[Interrupted]) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        interrupted.append(error)


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder of this process's, for as long as it lives.

    A process that is killed leaves its own, with a state of gigabytes. Nobody else knows them, so who comes next on the
    machine removes those that nobody holds.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError), _held(left):  # another one's, or another user's, or gone meanwhile
            shutil.rmtree(left)
    new = Path(tempfile.mkdtemp(prefix=".agft-trial-"))
    with _held(new):  # before it has the name that others look for
        folder = new.rename(new.with_name(f"{FOLDER}{new.name.rpartition('-')[2]}"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Inside, it is this process's; `OSError` where it is another one's."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _run(config: TrialConfig, wiring: Wiring, *, threads: int, gpus: float) -> Outcome:
    torch.set_num_threads(max(1, threads))
    chief = distributed.rank() == 0
    wiring.arrive()
    provenance = {**wiring.provenance(), "entries": outside_entries(config)}
    with own_folder() as workdir:
        group = distributed.broadcast_int(_together(lambda: wiring.claim() if chief else 0))
        restored = _agreed(_together(partial(wiring.fetch, group, workdir)))
        kept: dict[str, Weights | None] = {"latest": restored.latest, "best": restored.best} if restored else {}
        stored = wiring.stored
        interrupted: list[Interrupted] = []  # on rank 0: the others are told at the next step

        def save(step: Callable[[], Any]) -> None:
            with _noted(interrupted):
                wiring.patiently(step)

        def asked() -> bool:
            return evicted() or (chief and (bool(interrupted) or wiring.asked()))

        def halfway(path: Path, at: At) -> None:
            if interrupted:
                return
            with _noted(interrupted):
                wiring.keep(group, path, "latest", at, stored)

        def report(progress: Progress) -> Decision:
            nonlocal stored
            if not chief:  # the first one's decision holds for all
                return Decision.CONTINUE
            with _noted(interrupted):
                # The best weights first: a state that says "epoch 4 is the best" never exists without them.
                for role, path in (("best", progress.best), ("latest", progress.latest)):
                    if path is not None and not progress.resumed and not interrupted:
                        at = At(progress.record.epoch, progress.record.best_epoch)
                        kept[role] = wiring.keep(group, path, role, at, stored)
            if interrupted:
                return Decision.PAUSE
            facts = {**provenance, "inputs": progress.inputs, "precision": progress.precision}
            answer = wiring.report(Report.of(progress.history, stored, **kept, provenance=facts))
            stored = max(stored, answer.stored)
            return answer.decision

        result = train(
            config,
            report=report,
            workdir=workdir,
            resume_from=restored.state if restored else None,
            device=usable(torch.device(ray.train.torch.get_device()), gpus),
            shared=wiring.shared,
            patiently=save,
            halfway=halfway,
            listener=every(SIGN_SECONDS, wiring.alive) if chief else None,
            asked=asked,
        )
    if result.outcome == "paused" and distributed.any_rank(evicted()):
        raise Evicted("a process of it was told to end")
    if interrupted:
        raise interrupted[0]
    return result.outcome
