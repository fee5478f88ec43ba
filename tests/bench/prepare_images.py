"""How fast a dataset is prepared, and what reading a prepared set saves against decoding its JPEGs.

    python tests/bench/prepare_images.py [--images 10000] [--workers N] [--batches 20] [--out NAME.json]

Generated JPEGs of 500 x 375 pixels, about 80 kB each, close to ImageNet's. Preparing is timed as a whole, from the list
of files to the manifest. Reading: shuffled batches of 128 images, one process and one thread, once by decoding their
files and once from the memory-mapped set, in turn for every batch, so that what else the machine does meets both;
medians. Both read from the page cache, so the ratio is one of computing, not of disks. The bytes are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainers.data.decode import decode
from trainers.data.prepare import prepare
from trainers.data.stored import load_stored, read_raw
from trainers.data.table import FILE_DATASETS

BATCH, WIDTH, HEIGHT, CLASSES = 128, 500, 375, 50


def draw(job: tuple[Path, int]) -> int:
    """A picture with large shapes, edges and grain; returns its size in bytes."""
    file, number = job
    rng = np.random.default_rng(number)
    smooth = rng.normal(128, 60, (12, 16, 3)).clip(0, 255).astype(np.uint8)
    picture = np.asarray(Image.fromarray(smooth).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    for _ in range(12):
        left, top, width, height = rng.integers(0, (WIDTH, HEIGHT, 150, 150))
        picture[top : top + height, left : left + width] += rng.normal(0, 50, 3)
    picture += rng.normal(0, 12, picture.shape)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return file.stat().st_size


def generate(root: Path, number: int) -> float:
    """Write the set in DTD's layout; mean size of a file in bytes."""
    base = root / "dtd/dtd"
    names = [f"class{i % CLASSES:02d}/{i:06d}.jpg" for i in range(number)]
    for label in range(CLASSES):
        (base / "images" / f"class{label:02d}").mkdir(parents=True)
    (base / "labels").mkdir()
    (base / "labels/test1.txt").write_text("\n".join(names))
    with ProcessPoolExecutor() as pool:
        sizes = list(pool.map(draw, [(base / "images" / name, i) for i, name in enumerate(names)], chunksize=64))
    return statistics.mean(sizes)


def measure(root: Path, number: int, workers: int | None, batches: int) -> dict[str, Any]:
    entry = replace(FILE_DATASETS["dtd"], num_images=number, num_classes=min(number, CLASSES))
    began = time.perf_counter()
    prepare(entry, root, root / "prepared", workers=workers, say=print)
    seconds = time.perf_counter() - began
    os.environ["AGFT_PREPARED"] = str(root / "prepared")
    raw, stored = read_raw(entry, root), load_stored(entry)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    decoded, read = [], []
    for index in order.split(BATCH)[:batches]:
        began = time.perf_counter()
        theirs = np.stack([decode(raw.images[row], entry.resolution, 224) for row in index.tolist()])
        middle = time.perf_counter()
        ours = stored.images[index]
        read.append((time.perf_counter() - middle) / len(index))
        decoded.append((middle - began) / len(index))
        assert np.array_equal(theirs, ours.numpy())
    ms = {"decoding": 1e3 * statistics.median(decoded), "prepared": 1e3 * statistics.median(read)}
    return {
        "prepare": {"images": number, "seconds": seconds, "images_per_second": number / seconds},
        "milliseconds_per_image": ms,
        "ratio": ms["decoding"] / ms["prepared"],
        "batches": len(read),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, help="default: one a core")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="agft-bench-") as folder:
        size = generate(Path(folder), options.images)
        result = measure(Path(folder), options.images, options.workers, options.batches)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "command": f"python tests/bench/prepare_images.py --images {options.images}",
        "commit": commit.stdout.strip(),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()},
        "jpeg": {"pixels": [WIDTH, HEIGHT], "mean_bytes": size},
        **result,
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
