"""What a trial's record says of a failed Ray Train run."""

from __future__ import annotations

import errno

import pytest
import ray
import torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from infra.errors import Away
from study.driver.trial import LOST, ending_of
from trainers.errors import Interrupted, MissingWeights, UserError

KINDS = [
    (ray.exceptions.RayActorError(), "interrupted"),
    (ray.exceptions.NodeDiedError("gone"), "interrupted"),
    (ray.exceptions.WorkerCrashedError(), "interrupted"),
    (torch.OutOfMemoryError("80 GiB"), "out-of-memory"),
    (ray.exceptions.OutOfMemoryError("the node's memory"), "out-of-memory"),
    (MemoryError("host memory"), "out-of-memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out-of-memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out-of-memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "out-of-memory"),
    (torch.AcceleratorError("CUDA error: out of memory", 2), "out-of-memory"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "bug"),
    (WorkerGroupStartupTimeoutError(2), "interrupted"),
    (Away("S3 at http://s3:9000 is full"), "interrupted"),
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
        assert ending.lost == isinstance(cause, LOST)
    assert ending_of(ray.exceptions.RayTaskError("run", "traceback", cause)).outcome == ending.outcome


def test_what_is_missing_for_every_trial_is_told_from_what_one_trial_asks_for() -> None:
    assert ending_of(ControllerError(MissingWeights("model.pretrained: none"))).of_every_trial
    assert not ending_of(ControllerError(UserError("train.batch_size: too large"))).of_every_trial
