"""How fast a dataset is prepared, that a kill costs nothing but time, and what reading saves against decoding.

    nice -n 5 python tests/bench/prepare_images.py [--images 10000] [--workers N] [--rounds 40] [--out NAME.json]

Generated JPEGs of 500 x 375 pixels, about 85 kB each, close to ImageNet's. Three parts:

Preparing is timed as a whole, from the list of files to the manifest, three times. One more preparation is killed
(SIGKILL) when a third of its parts are there, started again, and its files are compared with the others. Reading:
shuffled batches of 128 images in one process and one thread, once by decoding their files and once from the
memory-mapped set, in turn for every round, so that what else the machine does meets both; medians over the rounds.
Both read from the page cache, so the ratio is one of computing, not of disks. The pixels of every round are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainers.data import DatasetEntry
from trainers.data.prepared.decode import decode
from trainers.data.prepared.prepare import prepare
from trainers.data.prepared.shards import MANIFEST
from trainers.data.stored import load_stored, read_raw
from trainers.data.table import FILE_DATASETS

BATCH, WIDTH, HEIGHT, CLASSES = 128, 500, 375, 50
PREPARING = "from tests.bench.prepare_images import prepare_all; import sys; prepare_all(*sys.argv[1:])"


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


def entry_of(number: int) -> DatasetEntry:
    return replace(FILE_DATASETS["dtd"], num_images=number, num_classes=min(number, CLASSES))


def prepare_all(root: str, place: str, number: str, workers: str) -> None:
    prepare(entry_of(int(number)), Path(root), Path(place), workers=int(workers), say=print)


def measure_preparing(root: Path, number: int, workers: int, repeats: int = 3) -> dict[str, Any]:
    """The last one stays."""
    seconds = []
    for _ in range(repeats):
        shutil.rmtree(root / "prepared", ignore_errors=True)
        began = time.perf_counter()
        prepare_all(str(root), str(root / "prepared"), str(number), str(workers))
        seconds.append(time.perf_counter() - began)
    return {"workers": workers, "seconds": seconds, "images_per_second": number / statistics.median(seconds)}


def kill_and_go_on(root: Path, number: int, workers: int) -> dict[str, Any]:
    """Raises if an image were lost, doubled or another than without the kill."""
    place, began = root / "killed", time.perf_counter()
    command = [sys.executable, "-c", PREPARING, str(root), str(place), str(number), str(workers)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    parts = len(list((root / "prepared/dtd").glob("images-*.npy")))
    while len(finished := list((place / "dtd").glob("images-*.json"))) < max(1, parts // 3):
        if process.poll() is not None:
            raise RuntimeError("it ended before it was killed: give it more images")
        time.sleep(0.005)
    process.kill()
    process.wait()
    times = {note.with_suffix(".npy"): note.with_suffix(".npy").stat().st_mtime_ns for note in finished}
    killed_after = time.perf_counter() - began
    began = time.perf_counter()
    prepare_all(str(root), str(place), str(number), str(workers))
    seconds = time.perf_counter() - began
    assert all(part.stat().st_mtime_ns == changed for part, changed in times.items()), "a finished part was made again"
    manifests = [(folder / "dtd" / MANIFEST).read_bytes() for folder in (root / "prepared", place)]
    assert manifests[0] == manifests[1], "its files are others than without the kill"
    assert subprocess.run(["cmp", *(folder / "dtd/images-00000.npy" for folder in (root / "prepared", place))],
                          check=False).returncode == 0  # fmt: skip
    return {"killed_after_seconds": killed_after, "parts": parts, "parts_kept": len(times),
            "seconds_to_go_on": seconds, "same_files": True}  # fmt: skip


def measure_reading(root: Path, number: int, rounds: int) -> dict[str, Any]:
    os.environ["AGFT_PREPARED"] = str(root / "prepared")
    entry = entry_of(number)
    raw, stored = read_raw(entry, root), load_stored(entry)
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    decoded, read = [], []
    for index in order.split(BATCH)[:rounds]:
        began = time.perf_counter()
        theirs = np.stack([decode(raw.images[row], entry.resolution, 224) for row in index.tolist()])
        middle = time.perf_counter()
        ours = stored.images[index]
        read.append(len(index) / (time.perf_counter() - middle))
        decoded.append(len(index) / (middle - began))
        assert np.array_equal(theirs, ours.numpy())
    ratios = [fast / slow for fast, slow in zip(read, decoded, strict=True)]
    return {
        "rounds": len(read),
        "decoding_images_per_second": statistics.median(decoded),
        "prepared_images_per_second": statistics.median(read),
        "ratio": statistics.median(ratios),
        "ratio_smallest": min(ratios),
        "ratio_largest": max(ratios),
    }


def machine() -> dict[str, Any]:
    models = {line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")}  # fmt: skip
    return {"cpu": sorted(models), "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg(),
            "nice": os.nice(0)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = machine()
    with tempfile.TemporaryDirectory(prefix="agft-bench-") as folder:
        size = generate(Path(folder), options.images)
        preparing = measure_preparing(Path(folder), options.images, options.workers)
        killed = kill_and_go_on(Path(folder), options.images, options.workers)
        reading = measure_reading(Path(folder), options.images, options.rounds)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result = {
        "command": f"python tests/bench/prepare_images.py --images {options.images} --rounds {options.rounds}",
        "commit": commit.stdout.strip(),
        "machine": before,
        "versions": {package: version(package) for package in ("numpy", "pillow", "torch")}
        | {"python": platform.python_version()},
        "images": options.images,
        "jpeg": {"pixels": [WIDTH, HEIGHT], "mean_bytes": size},
        "prepare": preparing,
        "kill": killed,
        "read": reading,
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
