"""The arithmetic of the teacher's embeddings: all rows in order, the same bytes for any number of ranks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import secrets
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers import distributed
from trainers.data import ImageSet
from trainers.evaluation.scorer import embed_images, micro_batch
from trainers.files import TEMPORARY, sync_folder, take_space
from trainers.model.robust import RobustCLIP

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


# One matrix, fp32 [N, D], in a safetensors file that says what it is, proves its bytes and can be memory-mapped.
#
# The header is the manifest: what the numbers were computed from, and the SHA-256 of the data. It lies in the file, so
# that one rename here and one object in S3 can never pair the data of one writer with the manifest of another.

NAME, KEY = "embeddings", "agft"
ALIGNMENT = 64  # bytes; the matrix starts at a multiple
LARGEST_HEADER = 1 << 20
UNKNOWN = "0" * 64  # in the place of the SHA-256 until the data is written


class Damaged(Exception):
    """A file that is not what it should be; the message is the reason."""


def _header(shape: tuple[int, int], manifest: Mapping[str, Any], sha256: str) -> bytes:
    """Length and JSON as safetensors wants them; its size does not depend on the SHA-256."""
    content = {
        "__metadata__": {KEY: json.dumps({**manifest, "sha256": sha256}, sort_keys=True), "format": "pt"},
        NAME: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * math.prod(shape)]},
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


class Writer:
    """Writes `path` from its first row to its last; the file appears with `finish()`, whole. Raises OSError.

    The space is taken at once, so that a full disk is known before anything is computed.
    """

    def __init__(self, path: Path, shape: tuple[int, int], manifest: Mapping[str, Any]) -> None:
        self.path, self.shape, self.manifest = path, shape, manifest
        self.temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        self.digest = hashlib.sha256()
        self.left = 4 * math.prod(shape)
        header = _header(shape, manifest, UNKNOWN)
        self.file = self.temporary.open("xb")
        try:
            take_space(self.file.fileno(), len(header) + self.left)
            self.file.write(header)
        except BaseException:
            self.discard()
            raise

    def add(self, rows: Tensor) -> None:
        """The next rows, fp32 [n, D]."""
        data = rows.contiguous().numpy().data.cast("B")
        self.digest.update(data)
        self.file.write(data)
        self.left -= len(data)

    def finish(self) -> None:
        """Put the SHA-256 into the header and the file into its place."""
        assert self.left == 0, f"{self.left} bytes of {self.path} were not written"
        self.file.seek(0)
        self.file.write(_header(self.shape, self.manifest, self.digest.hexdigest()))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.temporary.replace(self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing of an unfinished file; nothing happens to a finished one."""
        with contextlib.suppress(OSError):  # closing flushes, and the disk may be full
            self.file.close()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)


def read_embeddings(path: Path, wanted: Mapping[str, Any]) -> Tensor | None:
    """The matrix in `path`, memory-mapped; None if there is no file.

    Raises `Damaged` unless the manifest has every entry of `wanted`, the size is right and the data has its SHA-256.
    The map is private: it takes no memory but the page cache's, and what is written to it never reaches the file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER:
                raise Damaged("it does not start as a safetensors file")
            header = json.loads(file.read(length))
            manifest, entry = json.loads(header["__metadata__"][KEY]), header[NAME]
            different = [name for name in wanted if manifest.get(name) != wanted[name]]
            if different:
                raise Damaged(f"it was made from something else: {', '.join(different)}")
            rows, columns = (int(number) for number in entry["shape"])
            size, start = os.fstat(file.fileno()).st_size, 8 + length
            if entry["dtype"] != "F32" or size != start + 4 * rows * columns or rows * columns == 0:
                raise Damaged(f"its {size} bytes are not those of [{rows}, {columns}] in {entry['dtype']}")
            if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
                raise Damaged("its data does not have the SHA-256 in its header")
            mapped = np.memmap(file, np.float32, mode="c", offset=start, shape=(rows, columns))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise Damaged(f"it cannot be read ({type(error).__name__}: {error})") from error
    return torch.from_numpy(mapped)
