"""Batches read ahead of their use, so that the device does not wait for the disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable

import numpy as np
import torch
from torch import Tensor

from trainers.data.base import Images

AHEAD = 4  # batches that wait for their use
POLL_SECONDS = 0.5


def prefetched(images: Images, batches: Iterable[Tensor], device: torch.device) -> Generator[Tensor, None, None]:
    """`images[index]`, uint8 on `device`, for every `index` of `batches`, in order (say `order.split(batch_size)`).

    One thread gathers the rows, at most `AHEAD` batches ahead; on CUDA into pinned memory, from which they are copied
    while the device computes. What the thread raises is raised here. A tensor on the CPU is simply indexed: there is
    nothing to wait for.
    """
    if isinstance(images, Tensor) and device.type == "cpu":
        for index in batches:
            yield images[index]
        return
    ready: queue.Queue[Tensor | BaseException | None] = queue.Queue(AHEAD)
    left = threading.Event()
    thread = threading.Thread(target=_gather, args=(images, batches, device, ready, left), daemon=True)
    thread.start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found.to(device, non_blocking=True)
    finally:
        left.set()
        thread.join()


def _gather(
    images: Images,
    batches: Iterable[Tensor],
    device: torch.device,
    ready: queue.Queue[Tensor | BaseException | None],
    left: threading.Event,
) -> None:
    def hand_over(item: Tensor | BaseException | None) -> None:
        while not left.is_set():
            try:
                ready.put(item, timeout=POLL_SECONDS)
                break
            except queue.Full:
                pass

    try:
        for index in batches:
            if left.is_set():
                return
            rows = _rows(images, index)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    rows = rows.pin_memory()
            hand_over(rows)
    except BaseException as error:
        hand_over(error)
    else:
        hand_over(None)


def _rows(images: Images, index: Tensor) -> Tensor:
    """By numpy where that does it: torch would start a second set of threads for this one."""
    if isinstance(images, Tensor) and images.device.type == "cpu":
        return torch.from_numpy(np.ascontiguousarray(images.numpy()[index.numpy()]))
    return images[index]
