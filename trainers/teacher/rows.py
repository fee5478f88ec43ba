"""The arithmetic of the teacher's embeddings: all rows in order, the same bytes for any number of ranks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from trainers import distributed
from trainers.data import ImageSet
from trainers.evaluation.scorer import embed_images, usual_batch
from trainers.files import sync_folder, take_space, write_whole
from trainers.life import Stage
from trainers.model.robust import RobustCLIP

BATCHES = 8  # micro-batches that a rank computes between two exchanges
QUIET_SECONDS = 5.0
NOTE_SECONDS = 30.0  # between two notes of how far an unfinished file is
CHUNK_BYTES = 1 << 24

logger = logging.getLogger(__name__)


def embedding_width(model: RobustCLIP, image_set: ImageSet, device: torch.device) -> int:
    """D, from one forward."""
    return embed_images(model, image_set.images, torch.zeros(0, dtype=torch.int64), device).shape[1]


def embedding_rows(model: RobustCLIP, image_set: ImageSet, device: torch.device, *, done: int = 0) -> Iterator[Tensor]:
    """Blocks of consecutive rows, fp32 [n, D] on the CPU, on every rank the same; called on every rank together.

    Ranks take whole micro-batches of consecutive images, so that every forward sees the same images in the same places
    however many ranks there are. The first `done` rows, a whole number of micro-batches, are left out.
    """
    number, size = len(image_set), usual_batch(device)
    rank, ranks = distributed.rank(), distributed.world_size()
    progress, stage = _Progress(image_set.name, number, done), Stage("teacher", number)
    for first in range(done, number, size * ranks * BATCHES):
        index = torch.arange(first, min(first + size * ranks * BATCHES, number))
        batches = index.split(size)
        shares = [torch.cat([index[:0], *batches[other::ranks]]) for other in range(ranks)]
        own = embed_images(model, image_set.images, shares[rank], device).cpu()
        gathered = distributed.gather_rows(own)
        rows = torch.empty_like(gathered)
        rows[torch.cat(shares) - first] = gathered
        yield rows
        progress.at(first + len(index))
        stage.at(first + len(index))


def largest_error(embeddings: Tensor, model: RobustCLIP, image_set: ImageSet, device: torch.device) -> float:
    """Of one micro-batch of rows across the set, computed again: the largest relative L2 distance; inf if unlike."""
    number = len(image_set)
    rows = torch.linspace(0, number - 1, min(number, usual_batch(device))).long()
    live, kept = embed_images(model, image_set.images, rows, device).cpu(), embeddings[rows]
    if live.shape != kept.shape or not torch.equal(live.isfinite(), kept.isfinite()):
        return float("inf")
    live, kept = live.nan_to_num(), kept.nan_to_num()  # a broken model is as broken as it was
    return float(((live - kept).norm(dim=1) / live.norm(dim=1).clamp_min(1e-30)).max())


class _Progress:
    """Says on rank 0 how far it is, where that takes longer than a few seconds."""

    def __init__(self, name: str, number: int, before: int) -> None:
        self.name, self.number, self.before = name, number, before
        self.began = self.said = time.monotonic()

    def at(self, done: int) -> None:
        now = time.monotonic()
        if distributed.rank() or now - self.said < QUIET_SECONDS or done == self.number:
            return
        first, self.said = self.said == self.began, now
        rate = (done - self.before) / (now - self.began)
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

    The space is taken at once, so that a full disk is known before anything is computed. What a pass that was killed
    has written lies beside `path`, as the part and a note of how many of its rows are sure; a writer of the very same
    matrix with the same micro-batches goes on behind them. Only one process at a time may write (the cache's lock).
    """

    def __init__(self, path: Path, shape: tuple[int, int], manifest: Mapping[str, Any], *, batch: int) -> None:
        self.path, self.shape, self.manifest = path, shape, manifest
        self.part, self.note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        self.header = _header(shape, manifest, UNKNOWN)
        self.identity = {"header": hashlib.sha256(self.header).hexdigest(), "batch": batch}
        self.noted = time.monotonic()
        self.done, self.digest = self._sure()  # rows
        if not self.done:
            self.note.unlink(missing_ok=True)
        self.file = self.part.open("r+b" if self.done else "w+b")
        try:
            take_space(self.file.fileno(), len(self.header) + 4 * math.prod(shape))
            self.file.write(self.header)
            self.file.seek(4 * shape[1] * self.done, os.SEEK_CUR)
        except BaseException:
            self.discard()
            raise

    def _sure(self) -> tuple[int, hashlib._Hash]:
        """Rows of a part of this very matrix, as its note says and their SHA-256 proves; else none. And that digest."""
        none = 0, hashlib.sha256()
        try:
            note = json.loads(self.note.read_bytes())
            rows = int(note["rows"])
            if note["identity"] != self.identity or not 0 < rows <= self.shape[0]:
                return none
            with self.part.open("rb") as part:
                part.seek(len(self.header))
                digest = _digest(part, 4 * self.shape[1] * rows)
            return (rows, digest) if digest.hexdigest() == note["sha256"] else none
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return none  # no part, or not one to go on with: the pass begins anew

    def start(self, rows: int) -> None:
        """Go on behind the first `rows` rows: those that are there, or fewer."""
        if rows != self.done:  # reading them all again takes seconds
            self.file.seek(len(self.header))
            self.digest, self.done = _digest(self.file, 4 * self.shape[1] * rows), rows

    def add(self, rows: Tensor) -> None:
        """The next rows, fp32 [n, D]."""
        data = rows.contiguous().numpy().data.cast("B")
        self.digest.update(data)
        self.file.write(data)
        self.done += len(rows)
        if time.monotonic() - self.noted > NOTE_SECONDS:
            self._make_sure()

    def _make_sure(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        note = {"identity": self.identity, "rows": self.done, "sha256": self.digest.hexdigest()}
        write_whole(self.note, json.dumps(note).encode())
        self.noted = time.monotonic()

    def finish(self) -> None:
        """Put the SHA-256 into the header and the file into its place."""
        assert self.done == self.shape[0], f"{self.done} of {self.shape[0]} rows of {self.path} were written"
        self.file.seek(0)
        self.file.write(_header(self.shape, self.manifest, self.digest.hexdigest()))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.note.unlink(missing_ok=True)
        self.part.replace(self.path)
        sync_folder(self.path.parent)

    def leave(self) -> None:
        """Stop here; an unfinished file stays for the next writer if any of its rows are noted as sure."""
        with contextlib.suppress(OSError):  # the disk may be full
            if self.done and not self.file.closed:
                self._make_sure()
        with contextlib.suppress(OSError):  # closing flushes
            self.file.close()
        if not self.note.exists():
            self.discard()

    def discard(self) -> None:
        """Leave nothing of an unfinished file; nothing happens to a finished one."""
        with contextlib.suppress(OSError):
            self.file.close()
        for left in (self.note, self.part):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def _digest(file: BinaryIO, size: int) -> hashlib._Hash:
    """Of the next `size` bytes; OSError where there are fewer."""
    digest = hashlib.sha256()
    while size:
        chunk = file.read(min(size, CHUNK_BYTES))
        if not chunk:
            raise OSError(f"{size} bytes are missing")
        digest.update(chunk)
        size -= len(chunk)
    return digest


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
