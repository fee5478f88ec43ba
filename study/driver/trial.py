"""One trial: an order that the workers of a seat take and train, and a Tune function that passes on what they say.

Tune never kills it: it leaves when the board says so, and always with a word that carries its
outcome, so that no ending (a crash, a non-finite loss, no report at all) can upset the sweep.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from pydantic import ValidationError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import PreemptionError

from infra.errors import ServiceError
from infra.provenance import provenance
from infra.s3 import is_away
from study.artifacts.checkpoints import SharedPrefix, attempt_prefix, begin_group, fetch_state, keep_file
from study.artifacts.sources import use_s3_data, use_s3_weights
from study.driver.away import Patience
from study.driver.board import (
    BOARD_ANSWER_SECONDS,
    Inside,
    Order,
    announce,
    ask_board,
    board_name,
    lasting,
    listen,
    remark,
    take_order,
    tell_wait,
)
from study.errors import USER_ERRORS
from trainers.device import out_of_memory
from trainers.errors import OF_EVERY_TRIAL, Interrupted
from trainers.schema.records import Answer, At, Ending, Report, Weights
from trainers.trial_config import TrialConfig
from trainers.wiring import Wiring

GROWN, GROWN_BYTES = 1.5, 512 << 20  # a process that has grown by so much since its first trial is made anew
LOWER = "lower train.batch_size, or resources.max_concurrent: fewer trials then share a node"
LOST = (
    ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError,
    ray.exceptions.LocalRayletDiedError, ray.exceptions.OwnerDiedError, ray.exceptions.ActorPlacementGroupRemoved,
    ray.exceptions.ActorUnschedulableError, PreemptionError, WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError,
    ray.exceptions.GetTimeoutError,  # of a worker that is frozen while its group starts
)  # fmt: skip
# What a rank says of another one that went away. torch has classes for some of it.
OTHER_RANK = re.compile(r"Connection (closed|reset) by peer|remote process exited")
OTHER_RANK_TYPES = ("DistBackendError", "DistNetworkError")


@dataclass(frozen=True)
class TrialOrder:
    """Everything a trial's process needs; plain values, no secrets."""

    study: str  # its slug: name and time of creation
    number: int
    token: int
    serial: int  # of the attempt, from 1 among those of this driver
    bucket: str
    known: dict[str, Weights]  # role -> the checkpoints on record
    stored: int  # the last epoch whose record the study has
    config: dict[str, Any]
    rungs: tuple[int, ...]
    cpus_per_worker: float
    gpus_per_worker: float
    patience: float  # seconds to wait for S3 while it is away

    def settings(self) -> dict[str, Any]:
        """As Tune's trial config."""
        known = {role: found.model_dump() for role, found in self.known.items()}
        return {"order": json.dumps({**asdict(self), "known": known})}

    @classmethod
    def of(cls, settings: dict[str, Any]) -> TrialOrder:
        """Back from Tune's trial config."""
        fields = json.loads(settings["order"])
        known = {role: Weights.model_validate(found) for role, found in fields["known"].items()}
        return cls(**{**fields, "rungs": tuple(fields["rungs"]), "known": known})


def run_trial(settings: dict[str, Any]) -> None:
    """Tune's trainable: passes on what the trial says from its seat, the last word its ending."""
    from ray import tune

    order = TrialOrder.of(settings)
    ending = None
    for word in listen(board_name(order.study, order.token), order.serial):
        ending = word.get("ending")
        tune.report(word)
    if ending is None:
        tune.report({"ending": Ending(outcome="interrupted", message="no driver answers").model_dump_json()})


def serve(settings: dict[str, Any]) -> None:
    """What a worker of a seat does: one trial after the other, on all ranks the same, until it is told to leave.

    `work(order)` does one. Imports torch and open_clip here: Tune's process and Train's controller need neither.
    """
    from trainers import distributed
    from trainers.worker import evicted, tidy

    use_s3_weights()
    use_s3_data()
    board, seat, work = settings["board"], settings["seat"], settings["work"]
    chief = distributed.rank() == 0
    done, ending, first, worn = 0, "", 0, False
    if chief:
        lasting(board, lambda at: ray.get(at.sit.remote(seat), timeout=BOARD_ANSWER_SECONDS))
    while True:
        order = take_order(board, seat, done, ending, worn) if chief else Order(0)
        done = distributed.broadcast_int(order.serial)
        if done == 0:
            return
        if not chief:
            found = lasting(board, lambda at: ray.get(at.order_of.remote(seat, done), timeout=BOARD_ANSWER_SECONDS))  # noqa: B023
            if found is None:
                raise Interrupted("the driver of this seat has gone")
            order = found
        ended = work(TrialOrder.of({"order": order.text}))
        if not isinstance(ended, Ending):
            ended = Ending.failed("bug", "the workers returned nothing")
        tidy()
        if not first:  # what has been imported stays: to look through it after every trial takes half a second
            gc.freeze()
        now = psutil.Process().memory_info().rss
        first = first or now
        grown = now > first * GROWN and now - first > GROWN_BYTES
        ending, worn = ended.model_dump_json(), distributed.any_rank(grown)
        if distributed.any_rank(evicted()):
            if chief:
                lasting(board, lambda at: ray.get(at.end.remote(done, ending, True), timeout=BOARD_ANSWER_SECONDS))  # noqa: B023
            return


def train_order(order: TrialOrder) -> Ending:
    """One trial, on every rank."""
    from trainers.worker import train_on_worker

    try:
        TrialConfig.model_validate(order.config)
    except ValidationError as error:
        return Ending.failed("invalid", str(error))
    board = board_name(order.study, order.token)
    place = (order.bucket, order.study, order.number, order.token)
    attempt = attempt_prefix(*place)
    patiently = Patience(partial(tell_wait, board, order.number), order.patience)
    inside = Inside(board, order.number)

    def keep(group: int, path: Path, role: str, at: At, stored: int) -> Weights:
        kept: Weights = patiently(keep_file, attempt, group, path, role, at, stored)
        if at.steps:
            inside.advance()
        return kept

    wiring = Wiring(
        arrive=partial(announce, board, order.number, "worker"),
        claim=partial(begin_group, place, order.known, partial(remark, board, order.number), patiently),
        fetch=partial(patiently, fetch_state, attempt),
        keep=keep,
        report=partial(_report, board, order),
        provenance=provenance,
        patiently=patiently,
        alive=inside.tell,
        asked=inside.asked,
        stored=order.stored,
        shared=SharedPrefix(f"s3://{order.bucket}"),
    )
    settings = {
        "config": order.config, "wiring": wiring, "threads": int(order.cpus_per_worker), "gpus": order.gpus_per_worker,
    }  # fmt: skip
    return train_on_worker(settings)


def _report(board: str, order: TrialOrder, told: Report) -> Answer:
    said = order.serial, {"report": told.model_dump_json()}
    return ask_board(board, order.number, order.rungs, told.epoch, said)


def ending_of(error: BaseException, *, workers: int = 1) -> Ending:
    """How a trial of so many workers ended whose seat raised `error`, by its type and that of what it stands for.

    Interrupted: a process or node went away, or a service did. Else it has failed: out of memory, of impossible input,
    or of a bug.
    """
    causes = _causes(error)
    message = str(error)[-4000:]
    if short := short_of_memory([error]):
        first = next(iter(str(short).strip().splitlines()), type(short).__name__)  # Ray lists all processes below it
        return Ending.failed("out-of-memory", f"{first}; {LOWER}")
    # A service may refuse for good what no trial can mend: after some attempts the driver pauses the study.
    if refused := [each for each in causes if isinstance(each, Interrupted | ServiceError) or is_away(each)]:
        return Ending(outcome="interrupted", message=str(refused[0]))
    if any(isinstance(each, LOST) for each in causes):
        return Ending(outcome="interrupted", message=message, lost=True)
    if wrong := [each for each in causes if isinstance(each, USER_ERRORS)]:
        found = Ending.failed("invalid", str(wrong[0]))
        return found.model_copy(update={"of_every_trial": isinstance(wrong[0], OF_EVERY_TRIAL)})
    ranks = getattr(error, "worker_failures", {}).values() or [error]
    if workers > 1 and all(any(_other_rank_left(each) for each in _causes(rank)) for rank in ranks):
        return Ending(outcome="interrupted", message=message, lost=True)
    return Ending.failed("bug", message)


def _causes(error: BaseException) -> list[BaseException]:
    """It, and what it stands for: Ray wraps what happened to a worker up to three times, in any order."""
    found = [error]
    for each in found:  # which grows
        # A worker that dies while its group starts ends the controller with it.
        inside = [getattr(each, name, None) for name in ("controller_failure", "health_check_failure")]
        inside += getattr(each, "worker_failures", {}).values()
        inside += [each.cause] if isinstance(each, ray.exceptions.RayTaskError) else []
        found += [one for one in inside if isinstance(one, BaseException) and one not in found]
    return found


def short_of_memory(errors: Iterable[BaseException]) -> BaseException | None:
    """The first that says that memory ran out, a device's or a node's, as it was raised."""
    for error in errors:
        for each in _causes(error):
            if isinstance(each, ray.exceptions.OutOfMemoryError) or out_of_memory(each):
                return each
    return None


def _other_rank_left(error: BaseException) -> bool:
    """Whether a rank has failed because another one had gone."""
    return isinstance(error, RuntimeError) and (
        type(error).__name__ in OTHER_RANK_TYPES or OTHER_RANK.search(str(error)) is not None
    )
