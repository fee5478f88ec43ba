"""What a trial's record says of a failed Ray Train run."""

from __future__ import annotations

import errno

import pytest
import ray
import torch
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from infra.errors import Away, ServiceError
from study.driver.seats import GivesBack
from study.driver.trial import LOST, ending_of
from trainers.errors import Interrupted, MissingWeights, UserError

KINDS = [
    (ray.exceptions.RayActorError(), "interrupted"),
    (ray.exceptions.NodeDiedError("gone"), "interrupted"),
    (ray.exceptions.WorkerCrashedError(), "interrupted"),
    (torch.OutOfMemoryError("80 GiB"), "out-of-memory"),
    (ray.exceptions.OutOfMemoryError("the node's memory"), "out-of-memory"),
    (WorkerHealthCheckFailedError("rank 0", ray.exceptions.OutOfMemoryError("the node's memory")), "out-of-memory"),
    (WorkerHealthCheckFailedError("rank 0", ray.exceptions.RayActorError()), "interrupted"),
    (MemoryError("host memory"), "out-of-memory"),
    (OSError(errno.ENOMEM, "cannot allocate memory"), "out-of-memory"),
    (RuntimeError("std::bad_alloc"), "out-of-memory"),
    (RuntimeError("unable to mmap 512 bytes from file </w>: Cannot allocate memory (12)"), "out-of-memory"),
    (RuntimeError("CUDA driver error: out of memory"), "out-of-memory"),
    (RuntimeError("Triton Error [CUDA]: out of memory"), "out-of-memory"),
    (RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried"), "out-of-memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out-of-memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out-of-memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "out-of-memory"),
    (torch.AcceleratorError("CUDA error: out of memory", 2), "out-of-memory"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "bug"),
    (WorkerGroupStartupTimeoutError(2), "interrupted"),
    (ray.exceptions.GetTimeoutError("no answer in 60 s"), "interrupted"),
    (Away("S3 at http://s3:9000 is full"), "interrupted"),
    (ServiceError("S3 at http://s3:9000: HTTP 413"), "interrupted"),
    (OSError(errno.ENOSPC, "no space left on device"), "interrupted"),
    (Interrupted("S3 is away"), "interrupted"),
    (UserError("train.batch_size: 0"), "invalid"),
    (ValueError("no such thing"), "bug"),
]


@pytest.mark.parametrize(("cause", "kind"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_its_cause_decides_whether_a_worker_failed_or_its_group_did_not_start(cause: Exception, kind: str) -> None:
    for error in (WorkerGroupError("a rank failed", {1: OSError("follows"), 0: cause}), ControllerError(cause)):
        ending = ending_of(error)
        assert (ending.failure_kind or ending.outcome) == kind
        assert ending.message
        assert ending.lost == (kind == "interrupted" and isinstance(cause, LOST))
    assert ending_of(ray.exceptions.RayTaskError("run", "traceback", cause)).outcome == ending.outcome


def test_what_is_missing_for_every_trial_is_told_from_what_one_trial_asks_for() -> None:
    assert ending_of(ControllerError(MissingWeights("model.pretrained: none"))).of_every_trial
    assert not ending_of(ControllerError(UserError("train.batch_size: too large"))).of_every_trial


CLOSED = "[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:20411"
RANKS_LEFT = [
    RuntimeError(CLOSED),
    RuntimeError("Connection reset by peer"),
    torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
    torch.distributed.DistNetworkError("the connection to rank 0 was lost"),
]


@pytest.mark.parametrize("error", RANKS_LEFT, ids=lambda error: type(error).__name__)
def test_ranks_that_miss_another_one_are_interrupted_unless_one_of_them_has_failed_itself(error: Exception) -> None:
    for found in (
        WorkerGroupError("", {1: error, 2: error}),
        ControllerError(ray.exceptions.RayTaskError("", "", error)),
    ):
        ending = ending_of(found, workers=3)
        assert (ending.outcome, ending.lost) == ("interrupted", True)
        assert ending_of(found, workers=1).failure_kind == "bug"
    assert ending_of(WorkerGroupError("", {0: ValueError("wrong"), 1: error}), workers=2).failure_kind == "bug"
    assert ending_of(WorkerGroupError("", {0: UserError("wrong"), 1: error}), workers=2).failure_kind == "invalid"


SHORT = [
    WorkerHealthCheckFailedError("rank 0", ray.exceptions.OutOfMemoryError("the node's memory")),
    UserExceptionWithTraceback(torch.OutOfMemoryError("80 GiB"), "traceback"),
]


@pytest.mark.parametrize("error", SHORT, ids=["the monitor", "the device"])
def test_workers_that_ran_out_of_memory_are_not_tried_again_unseen(error: Exception) -> None:
    status = WorkerGroupPollStatus({0: WorkerStatus(True), 1: WorkerStatus(False, error)})
    with pytest.raises((ray.exceptions.OutOfMemoryError, torch.OutOfMemoryError)):
        GivesBack("board", "seat").after_worker_group_poll_status(status)


def test_workers_that_were_lost_are_left_to_ray() -> None:
    lost = WorkerHealthCheckFailedError("rank 1", ray.exceptions.RayActorError())
    GivesBack("board", "seat").after_worker_group_poll_status(WorkerGroupPollStatus({1: WorkerStatus(False, lost)}))
