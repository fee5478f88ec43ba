"""How several workers find each other on a cluster of this machine alone: over loopback, and nothing else.

Imports torch, as Ray's own `TorchConfig` does, whose rendezvous listens on every interface, for anybody.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOPBACK, INTERFACE = "127.0.0.1", "lo"
BACKLOG = 1024

_listening: list[socket.socket] = []  # in rank 0's process, until it opens the store


class LoopbackConfig(TorchConfig):
    """A process group of workers whose nodes all have the address 127.0.0.1."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Loopback


class _Loopback(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called in Train's controller, whenever a group of workers starts."""
        port, number = worker_group.execute_single(0, _listen), len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend_config.backend, rank, number, port, backend_config.timeout_s
                )
                for rank in range(number)
            ]
        )


def _listen() -> int:
    """In the first worker: a port that is this process's from now on."""
    listening = socket.create_server((LOOPBACK, 0), backlog=BACKLOG)
    _listening[:] = [listening]
    return int(listening.getsockname()[1])


def _join(backend: str, rank: int, number: int, port: int, timeout_seconds: int) -> None:
    """In every worker: torch's process group, and what Gloo and NCCL listen on is loopback's, too."""
    os.environ.update(GLOO_SOCKET_IFNAME=INTERFACE, NCCL_SOCKET_IFNAME=INTERFACE)
    timeout = timedelta(seconds=timeout_seconds)
    descriptor = _listening.pop().detach() if rank == 0 else None
    store = TCPStore(LOOPBACK, port, number, rank == 0, timeout, master_listen_fd=descriptor)
    dist.init_process_group(backend, store=store, rank=rank, world_size=number, timeout=timeout)
