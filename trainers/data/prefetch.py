"""Batches read ahead of their use, so that the device does not wait for the disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainers.data.base import Images
from trainers.data.prepared.shards import ShardedImages

AHEAD = 4  # batches that wait for their use
POLL_SECONDS = 0.5


def prefetched(images: Images, batches: Iterable[Tensor], device: torch.device) -> Generator[Tensor, None, None]:
    """`images[index]`, uint8 on `device`, for every `index` of `batches`, in order (say `order.split(batch_size)`).

    One thread gathers the rows, at most `AHEAD` batches ahead; on CUDA into pinned memory that is used again and again,
    from which a stream of its own copies them while the device computes. What the thread raises is raised here. A
    tensor on the CPU is simply indexed: there is nothing to wait for.
    """
    if isinstance(images, Tensor) and device.type == "cpu":
        for index in batches:
            yield images[index]
        return
    ready: queue.Queue[Callable[[], Tensor] | BaseException | None] = queue.Queue(AHEAD)
    left = threading.Event()
    gather = _Pinned(images, device) if device.type == "cuda" else partial(_rows, images)
    thread = threading.Thread(target=_gather, args=(gather, batches, ready, left), daemon=True)
    thread.start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found()
    finally:
        left.set()
        thread.join()


def _gather(
    gather: Callable[[Tensor], Callable[[], Tensor]],
    batches: Iterable[Tensor],
    ready: queue.Queue[Callable[[], Tensor] | BaseException | None],
    left: threading.Event,
) -> None:
    def hand_over(item: Callable[[], Tensor] | BaseException | None) -> None:
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
            hand_over(gather(index))
    except BaseException as error:
        hand_over(error)
    else:
        hand_over(None)


def _rows(images: Images, index: Tensor) -> Callable[[], Tensor]:
    rows = images[index]
    return lambda: rows


class _Pinned:
    """Rows of `images` in pinned memory, and from there on the device.

    Called in the reading thread; what it returns is called where the batch is used, and makes that stream wait for the
    copy. A buffer is filled again when its last copy has ended, so that there are never more than `AHEAD` + 2.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images, self.device = images, device
        self.stream = torch.cuda.Stream(device)
        self.buffers: list[tuple[Tensor, torch.cuda.Event]] = []
        self.turn = 0

    def __call__(self, index: Tensor) -> Callable[[], Tensor]:
        buffer, copied = self._buffer(len(index))
        rows = buffer[: len(index)]
        if isinstance(self.images, ShardedImages):
            self.images.read_into(index.numpy() % len(self.images), rows.numpy())
        elif (
            isinstance(self.images, Tensor) and self.images.device.type == "cpu"
        ):  # by numpy: torch would start a second set of threads for this one
            np.take(self.images.numpy(), index.numpy(), axis=0, out=rows.numpy())
        else:
            rows.copy_(self.images[index])
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            there = rows.to(self.device, non_blocking=True)
            copied.record(self.stream)

        def use() -> Tensor:
            using = torch.cuda.current_stream(self.device)
            using.wait_event(copied)
            there.record_stream(using)  # it was made on the other stream, which must not give its memory away
            return there

        return use

    def _buffer(self, count: int) -> tuple[Tensor, torch.cuda.Event]:
        """Room for `count` rows that nothing is copied from any more, and the event of the next copy."""
        if len(self.buffers) < AHEAD + 2:
            place = len(self.buffers)
            self.buffers.append((torch.empty(0, dtype=torch.uint8), torch.cuda.Event()))
        else:
            place, self.turn = self.turn, (self.turn + 1) % len(self.buffers)
        buffer, copied = self.buffers[place]
        copied.synchronize()
        if len(buffer) < count:
            with torch.cuda.device(self.device):
                buffer = torch.empty((count, *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
            self.buffers[place] = buffer, copied
        return buffer, copied
