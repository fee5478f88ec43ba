"""The few collective operations that training needs; without an initialised process group they are the identity."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def _device() -> torch.device:
    """Where collectives live: NCCL moves only CUDA tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def all_reduce_sum(values: Tensor) -> Tensor:
    """Element-wise sum over all ranks, same dtype and device; exact for int64 counts. The input is not changed."""
    if world_size() == 1:
        return values.clone()
    moved = values.detach().to(_device(), copy=True)
    dist.all_reduce(moved)
    return moved.to(values.device)


def broadcast_int(value: int) -> int:
    """Rank 0's `value`, on every rank."""
    if world_size() == 1:
        return value
    box = torch.tensor([value], dtype=torch.int64, device=_device())
    dist.broadcast(box, src=0)
    return int(box.item())


def any_rank(flag: bool) -> bool:
    """Is it true on any rank? The answer is the same on all of them."""
    return bool(all_reduce_sum(torch.tensor([int(flag)])))


def gather_rows(rows: Tensor) -> Tensor:
    """[n_rank, ...] on every rank -> [sum n_rank, ...] in rank order on every rank; any n_rank, also 0."""
    if world_size() == 1:
        return rows.clone()
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(rows)
    counts = all_reduce_sum(counts)
    as_bool = rows.dtype == torch.bool
    values = rows.to(torch.uint8) if as_bool else rows
    padded = torch.zeros((int(counts.max()), *rows.shape[1:]), dtype=values.dtype, device=_device())
    padded[: len(rows)] = values.to(padded.device)
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    joined = torch.cat([part[:n] for part, n in zip(parts, counts.tolist(), strict=True)]).to(rows.device)
    return joined.to(torch.bool) if as_bool else joined


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()
