"""One trial: sampled values -> TrialConfig -> a TorchTrainer inside a Tune function.

Tune never kills it: it ends at a report boundary when the board says so, and always with a report that carries its
outcome, so that no ending (a crash, a non-finite loss, no report at all) can upset the sweep.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from pydantic import ValidationError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import get_current_placement_group, remove_placement_group

from infra.provenance import provenance
from study.artifacts.checkpoints import (
    SharedPrefix,
    attempt_prefix,
    claim_group,
    fetch_state,
    keep_file,
    scratch_prefix,
)
from study.artifacts.sources import use_s3_data, use_s3_weights
from study.driver.board import announce, ask_board, board_name
from trainers.schema.records import Ending
from trainers.trial_config import TrialConfig
from trainers.wiring import Wiring

WORKER_RESTARTS = 3  # lost workers a trial survives, each from its newest state
CONTROLLER_FAILURES = 5  # Train's own start failures; its default is to try for ever


@dataclass(frozen=True)
class TrialOrder:
    """Everything a trial's process needs; plain values, no secrets."""

    study: str  # its slug: name and time of creation
    number: int
    token: int
    bucket: str
    known: dict[str, str]  # role -> URI of the checkpoints on record
    stored: int  # the last epoch whose record the study has
    config: dict[str, Any]
    rungs: tuple[int, ...]
    workers: int
    cpus_per_worker: float
    gpus_per_worker: float

    def settings(self) -> dict[str, Any]:
        """As Tune's trial config."""
        return {"order": json.dumps(asdict(self))}

    @classmethod
    def of(cls, settings: dict[str, Any]) -> TrialOrder:
        """Back from Tune's trial config."""
        fields = json.loads(settings["order"])
        return cls(**{**fields, "rungs": tuple(fields["rungs"])})


def train_worker(settings: dict[str, Any]) -> Ending:
    """`train_on_worker`, imported where it runs: this process and Train's controller need no open_clip."""
    from trainers.worker import train_on_worker

    use_s3_weights()
    use_s3_data()
    return train_on_worker(settings)


def run_trial(settings: dict[str, Any]) -> None:
    """Tune's trainable."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.tune.integration.ray_train import TuneReportCallback

    order = TrialOrder.of(settings)
    try:
        TrialConfig.model_validate(order.config)
    except ValidationError as error:
        tune.report({"ending": Ending.failed("invalid", str(error)).model_dump_json()})
        return
    board = board_name(order.study, order.token)
    attempt = attempt_prefix(order.bucket, order.study, order.number, order.token)
    announce(board, order.number, "driver")
    wiring = Wiring(
        arrive=partial(announce, board, order.number, "worker"),
        claim=partial(claim_group, order.bucket, order.study, order.number, order.token, order.known),
        fetch=partial(fetch_state, attempt),
        keep=partial(keep_file, attempt),
        answer=partial(ask_board, board, order.number, order.rungs),
        provenance=provenance,
        stored=order.stored,
        shared=SharedPrefix(f"s3://{order.bucket}"),
    )
    resources = {"CPU": order.cpus_per_worker}
    if order.gpus_per_worker:
        resources["GPU"] = order.gpus_per_worker
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": order.config, "wiring": wiring, "threads": int(order.cpus_per_worker)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=order.workers, use_gpu=order.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"trials/{order.number}/a{order.token}",
            storage_path=scratch_prefix(order.bucket, order.study),
            failure_config=ray.train.FailureConfig(
                max_failures=WORKER_RESTARTS, controller_failure_limit=CONTROLLER_FAILURES
            ),
            callbacks=[TuneReportCallback(), GivesBack()],
        ),
    )
    try:
        ending = trainer.fit().return_value
        if not isinstance(ending, Ending):
            ending = Ending.failed("bug", "the workers returned nothing")
    except TrainingFailedError as error:
        ending = Ending.failed(failure_kind(error), str(error)[-4000:])
    tune.report({"ending": ending.model_dump_json()})


def failure_kind(error: Exception) -> str:
    """`out-of-memory`, `pre-empted` (a process or node went away) or `bug`."""
    import ray
    import torch

    # A worker that dies while its group starts ends the controller with it.
    causes = [error, getattr(error, "controller_failure", error), *getattr(error, "worker_failures", {}).values()]
    if any(
        isinstance(cause, torch.OutOfMemoryError | ray.exceptions.OutOfMemoryError | MemoryError) for cause in causes
    ):
        return "out-of-memory"
    lost = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError)
    return "pre-empted" if any(isinstance(cause, lost) for cause in causes) else "bug"


# Gives back the placement group of workers that die at their very start, which Ray itself keeps to the job's end.
#
# Ray (2.60) cleans up a start that fails before it knows the workers, and a group that has started; in between nobody
# does, and its own cleaner acts only when the controller dies. Every such death would cost the cluster a slot.


class GivesBack(ControllerCallback, WorkerGroupCallback):
    """For `RunConfig.callbacks`; lives in Train's controller."""

    def __init__(self) -> None:
        self.held: Any = None  # the group of workers that are starting or at work

    def before_init_train_context(self, workers: Any) -> dict[str, list[Any]]:
        """Learn the placement group, before Ray counts the workers as known."""
        self.held = ray.get(workers[0].execute_async(get_current_placement_group))
        return {}

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Ray has removed it."""
        self.held = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Before the next one: Ray forgot the last one if it is still here."""
        self._give_back()

    async def before_controller_shutdown(self) -> None:
        """The same, where there is no next one."""
        self._give_back()

    def _give_back(self) -> None:
        if self.held is not None:
            remove_placement_group(self.held)
            self.held = None
