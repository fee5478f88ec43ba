"""Images per second of a prepared set larger than memory: one thread through a memory map, and our readers.

    python tests/bench/read_images.py [--images 8192] [--batch 256] [--rounds 5] [--folder DIR] [--out FILE]

No batch of such a set is in memory when it is asked for, so the set's files are dropped from the page cache before
every batch (`posix_fadvise`; what is mapped stays, so maps are made anew), outside the time. All ways read the same
random order, in turn, and are compared byte by byte. `--folder`: on the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.data.prepared.shards import READERS, Manifest, Shard, ShardedImages

PER_SHARD = 1024


def written(folder: Path, count: int, side: int) -> ShardedImages:
    """A set of random pixels on this disk."""
    generator, shards = np.random.default_rng(0), []
    for number in range(-(-count // PER_SHARD)):
        own = min(PER_SHARD, count - number * PER_SHARD)
        file = folder / f"images-{number:05d}.npy"
        np.save(file, generator.integers(0, 256, (own, 3, side, side), np.uint8))
        shards.append(Shard(file.name, own, ""))
    shape = (count, 3, side, side)
    manifest = Manifest(1, "drawn", "train", (), (), "", (), "", shape, PER_SHARD, tuple(shards), "", "", {}, {})
    return ShardedImages(manifest, lambda file: folder / file)


def dropped(folder: Path) -> None:
    """Nothing of the files is in memory any more.

    Raises:
        RuntimeError: something is.
    """
    files = sorted(folder.glob("*.npy"))
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    resident = subprocess.run(["fincore", "-bno", "RES", *files], capture_output=True, text=True, check=True).stdout
    if any(int(size) for size in resident.split()):
        raise RuntimeError(f"{folder} stays in the page cache: {resident.split()}")


def mapped(folder: Path, advice: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One thread, row by row out of new memory maps."""
    files = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))]
    for file in files:
        file._mmap.madvise(advice)
    found = np.empty((len(rows), *files[0].shape[1:]), np.uint8)
    for row, image in enumerate(rows.tolist()):
        found[row] = files[image // PER_SHARD][image % PER_SHARD]
    return found


def seconds(folder: Path, read: Callable[[NDArray[np.int64]], Any], rows: NDArray[np.int64]) -> float:
    """For one batch that is not in memory."""
    dropped(folder)
    began = time.perf_counter()
    read(rows)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rates: dict[str, list[float]] = {"memory map": [], "memory map, told that reads are random": [], "readers": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        images = written(folder, given.images, given.side)
        reads: list[Callable[[NDArray[np.int64]], NDArray[np.uint8]]] = [
            partial(mapped, folder, mmap.MADV_NORMAL), partial(mapped, folder, mmap.MADV_RANDOM),
            lambda rows: images[torch.from_numpy(rows)].numpy(),
        ]  # fmt: skip
        ways = dict(zip(rates, reads, strict=True))
        for turn in range(given.rounds):
            order = np.random.default_rng(turn).permutation(given.images)
            batches = np.split(order, range(given.batch, given.images, given.batch))
            for name in list(ways)[:: 1 - 2 * (turn % 2)]:
                rates[name].append(given.images / sum(seconds(folder, ways[name], rows) for rows in batches))
            for rows in batches[:4]:
                found = [read(rows) for read in ways.values()]
                assert all(np.array_equal(each, found[0]) for each in found)
    ratios = {
        name: [new / old for new, old in zip(rates["readers"], rates[name], strict=True)]
        for name in rates if name != "readers"
    }  # fmt: skip
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPUs", "commit": commit.stdout.strip(),
        "command": " ".join(["python", *sys.argv]), "images": given.images, "side": given.side, "batch": given.batch,
        "readers": READERS,
        "images_per_second": {name: round(statistics.median(found)) for name, found in rates.items()},
        "readers_faster_than": {
            name: {"median": round(statistics.median(found), 2), "each": [round(ratio, 2) for ratio in found]}
            for name, found in ratios.items()
        },
    }  # fmt: skip
    print(json.dumps(record, indent=1))
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
