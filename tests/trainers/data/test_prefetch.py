"""Batches read ahead: the same ones in the same order, errors in the consumer, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.support.small import image_set
from trainers.data.prefetch import AHEAD, prefetched

CPU = torch.device("cpu")


class Stored:
    """Images that are no tensor, as a prepared set's are not; remembers what was read, and can fail."""

    def __init__(self, images: Tensor, *, fails_at: int = -1) -> None:
        self.images, self.fails_at, self.read = images, fails_at, 0
        self.shape: tuple[int, ...] = tuple(images.shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        if self.read == self.fails_at:
            raise OSError("the disk is gone")
        self.read += 1
        return self.images[index]


def threads() -> int:
    return threading.active_count()


@pytest.mark.parametrize("size", [1, 7, 40, 100])
def test_batches_are_the_rows_of_the_order(size):
    images = image_set("x", 40).images
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert isinstance(images, Tensor)
    before = threads()
    for source in (images, Stored(images)):
        found = list(prefetched(source, order.split(size), CPU))
        assert [len(batch) for batch in found] == [len(index) for index in order.split(size)]
        assert torch.equal(torch.cat(found), images[order])
    assert threads() <= before


def test_no_batches_are_no_batches():
    assert list(prefetched(Stored(torch.zeros(3, 3, 2, 2)), [], CPU)) == []


def test_an_error_comes_where_its_batch_would_and_the_thread_ends():
    before = threads()
    batches = prefetched(Stored(torch.zeros(40, 3, 2, 2), fails_at=3), torch.arange(40).split(4), CPU)
    assert [len(next(batches)) for _ in range(3)] == [4, 4, 4]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert threads() <= before


def test_an_error_in_the_order_is_raised_as_well():
    def order() -> Iterator[Tensor]:
        yield torch.arange(2)
        raise RuntimeError("no more")

    batches = prefetched(Stored(torch.zeros(3, 3, 2, 2)), order(), CPU)
    assert len(next(batches)) == 2
    with pytest.raises(RuntimeError, match="no more"):
        next(batches)


def test_it_reads_ahead_but_not_far_and_stops_when_nobody_wants_more():
    stored, before = Stored(torch.zeros(400, 3, 2, 2)), threads()
    batches = prefetched(stored, torch.arange(400).split(4), CPU)
    next(batches)
    deadline = time.monotonic() + 10
    while stored.read < AHEAD + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert stored.read == AHEAD + 2  # one taken, those that wait, and one in hand
    batches.close()
    assert threads() <= before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_batches_are_the_same():
    images = image_set("x", 200).images
    assert isinstance(images, Tensor)
    for source in (images, Stored(images)):
        found = list(prefetched(source, torch.arange(200).split(16), torch.device("cuda")))
        assert all(batch.device.type == "cuda" for batch in found)
        assert torch.equal(torch.cat(found).cpu(), images)
