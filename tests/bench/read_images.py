"""Images per second of a prepared set that is not in memory: one thread through a memory map, and our readers.

    python tests/bench/read_images.py [--images 8192] [--batch 256] [--rounds 5] [--folder DIR] [--out FILE]

The set's files are dropped from the page cache before every run (`posix_fadvise`); both ways read the same random
order, in turn, and are compared byte by byte. `--folder`: on the disk that is to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    """Nothing of the files is in memory any more."""
    for file in sorted(folder.glob("*.npy")):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def mapped(folder: Path) -> Callable[[Tensor], NDArray[np.uint8]]:
    """One thread, row by row out of memory maps."""
    files = [np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))]

    def read(index: Tensor) -> NDArray[np.uint8]:
        rows = index.numpy()
        found = np.empty((len(rows), *files[0].shape[1:]), np.uint8)
        for row, image in enumerate(rows.tolist()):
            found[row] = files[image // PER_SHARD][image % PER_SHARD]
        return found

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rates: dict[str, list[float]] = {"memory map": [], "readers": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        images = written(folder, given.images, given.side)
        for turn in range(given.rounds):
            order = torch.randperm(given.images, generator=torch.Generator().manual_seed(turn)).split(given.batch)
            ways: dict[str, Callable[[Tensor], Any]] = {
                "memory map": mapped(folder), "readers": lambda index: images[index].numpy()
            }  # fmt: skip
            for name in sorted(ways, reverse=bool(turn % 2)):
                dropped(folder)
                began = time.perf_counter()
                for index in order:
                    ways[name](index)
                rates[name].append(given.images / (time.perf_counter() - began))
            assert all(np.array_equal(ways["memory map"](index), ways["readers"](index)) for index in order[:4])
    ratios = [new / old for new, old in zip(rates["readers"], rates["memory map"], strict=True)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "hardware": f"{platform.machine()}, {os.cpu_count()} CPUs", "commit": commit.stdout.strip(),
        "command": " ".join(["python", *sys.argv]), "images": given.images, "side": given.side, "batch": given.batch,
        "readers": READERS, "images_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "faster_by": {"median": statistics.median(ratios), "each": [round(ratio, 2) for ratio in ratios]},
    }  # fmt: skip
    print(json.dumps(record, indent=1))
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
