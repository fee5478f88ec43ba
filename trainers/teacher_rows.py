"""The arithmetic of the teacher's embeddings: all rows in order, the same bytes for any number of ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from trainers import distributed
from trainers.data import ImageSet
from trainers.evaluate import embed_images, micro_batch
from trainers.model import RobustCLIP

__all__ = ["embedding_rows", "embedding_width", "largest_error"]

BATCHES = 8  # micro-batches that a rank computes between two exchanges
QUIET_SECONDS = 5.0

logger = logging.getLogger(__name__)


def embedding_width(model: RobustCLIP, image_set: ImageSet, device: torch.device) -> int:
    """D, from one forward."""
    return embed_images(model, image_set.images, torch.zeros(0, dtype=torch.int64), device).shape[1]


def embedding_rows(model: RobustCLIP, image_set: ImageSet, device: torch.device) -> Iterator[Tensor]:
    """Blocks of consecutive rows, fp32 [n, D] on the CPU, on every rank the same; called on every rank together.

    Ranks take whole micro-batches of consecutive images, so that every forward sees the same images in the same places
    however many ranks there are.
    """
    number, size = len(image_set), micro_batch(device)
    rank, ranks = distributed.rank(), distributed.world_size()
    progress = _Progress(image_set.name, number)
    for first in range(0, number, size * ranks * BATCHES):
        index = torch.arange(first, min(first + size * ranks * BATCHES, number))
        batches = index.split(size)
        shares = [torch.cat([index[:0], *batches[other::ranks]]) for other in range(ranks)]
        own = embed_images(model, image_set.images, shares[rank], device).cpu()
        gathered = distributed.gather_rows(own)
        rows = torch.empty_like(gathered)
        rows[torch.cat(shares) - first] = gathered
        yield rows
        progress.at(first + len(index))


def largest_error(embeddings: Tensor, model: RobustCLIP, image_set: ImageSet, device: torch.device) -> float:
    """Of one micro-batch of rows across the set, computed again: the largest relative L2 distance; inf if unlike."""
    number = len(image_set)
    rows = torch.linspace(0, number - 1, min(number, micro_batch(device))).long()
    live, kept = embed_images(model, image_set.images, rows, device).cpu(), embeddings[rows]
    if live.shape != kept.shape or not torch.equal(live.isfinite(), kept.isfinite()):
        return float("inf")
    live, kept = live.nan_to_num(), kept.nan_to_num()  # a broken model is as broken as it was
    return float(((live - kept).norm(dim=1) / live.norm(dim=1).clamp_min(1e-30)).max())


class _Progress:
    """Says on rank 0 how far it is, where that takes longer than a few seconds."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.began = self.said = time.monotonic()

    def at(self, done: int) -> None:
        now = time.monotonic()
        if distributed.rank() or now - self.said < QUIET_SECONDS or done == self.number:
            return
        first, self.said = self.said == self.began, now
        rate = done / (now - self.began)
        # Python shows warnings where nobody set up logging, and one line with the time it takes should be seen.
        logger.log(
            logging.WARNING if first else logging.INFO,
            "teacher's embeddings of %s, once for all trials: %d of %d images, %.0f images/s, %.0f s to go",
            self.name, done, self.number, rate, (self.number - done) / rate,
        )  # fmt: skip
