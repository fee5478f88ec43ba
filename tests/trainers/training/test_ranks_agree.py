"""Ranks that have read different states, or one of them none, train on from neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from torch import multiprocessing

from trainers.errors import Interrupted
from trainers.schema.records import Weights
from trainers.wiring import Restored
from trainers.worker import _agreed


def restored(digit: str) -> Restored | None:
    if not digit:
        return None
    return Restored(Path("state"), latest=Weights(uri="s3://lab/latest", sha256=digit * 64), best=None)


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        for same in ("", "0", "1"):
            assert _agreed(restored(same)) == restored(same)
        for digits in (("1", "2"), ("0", ""), ("", "0")):
            with pytest.raises(Interrupted, match="different states"):
                _agreed(restored(digits[rank]))
    finally:
        dist.destroy_process_group()


def test_ranks_that_have_read_different_states_are_interrupted_together(tmp_path: Path) -> None:
    multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")  # quick: no import again
