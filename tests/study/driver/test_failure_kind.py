"""What a trial's record says of a failed Ray Train run."""

from __future__ import annotations

import pytest
import ray
import torch
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from study.driver.trial import failure_kind

KINDS = [
    (ray.exceptions.RayActorError(), "pre-empted"),
    (ray.exceptions.NodeDiedError("gone"), "pre-empted"),
    (ray.exceptions.WorkerCrashedError(), "pre-empted"),
    (torch.OutOfMemoryError("80 GiB"), "out-of-memory"),
    (ray.exceptions.OutOfMemoryError("the node's memory"), "out-of-memory"),
    (MemoryError("host memory"), "out-of-memory"),
    (ValueError("no such thing"), "bug"),
]


@pytest.mark.parametrize(("cause", "kind"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_its_cause_decides_whether_a_worker_failed_or_its_group_did_not_start(cause: Exception, kind: str) -> None:
    assert failure_kind(WorkerGroupError("a rank failed", {1: ValueError("follows"), 0: cause})) == kind
    assert failure_kind(ControllerError(cause)) == kind
