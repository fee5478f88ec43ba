"""What the teacher's cache saves: an AGFT step with looked-up embeddings against one with the teacher's forward in it.

    python tests/bench/teacher_cache.py [--threads 1] [--opening] [--out tests/bench/results/NAME.json]

One process, one model, one batch, the paper's AGFT (two PGD steps). Both kinds of step are taken in turn, first the
one and then the other with every pair, so that what else the machine does meets both; medians over the pairs. Process
CPU time is the second measure. The lookup is that of training: rows of the memory-mapped cache file by index.
`--opening` measures what a trial pays once: verifying a file of ImageNet's size (1.28 million x 512, 2.6 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from trainers.arithmetic import exact_math
from trainers.data import ImageSet, load_dataset
from trainers.model.build import Description, build_clip, tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.objectives import METHODS, Batch, Context
from trainers.schema.training import AttackConfig, ModelConfig, TrainConfig
from trainers.teacher.rows import Writer, read_embeddings
from trainers.teacher.teacher import teacher_embeddings
from trainers.training.update import Updater

CPU = torch.device("cpu")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    name: str
    model: RobustCLIP
    images: ImageSet
    classes: Tensor
    batch_size: int
    pairs: int


def tiny_case(pairs: int) -> Case:
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    images = load_dataset("tiny-color-shapes")
    classes = class_embeddings(clip, images.prompts(), tokenizer_for(clip))
    return Case("tiny-clip, batch 128", RobustCLIP(clip), images, classes, 128, pairs)


def large_case(pairs: int, batch_size: int) -> Case:
    """ViT-B/32 as it is, with random weights and images: the time of a step does not depend on what they are."""
    arch = "ViT-B-32-quickgelu"
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    clip = build_clip(Description(arch, open_clip.get_model_config(arch) or {}, {}))
    pixels = torch.randint(0, 256, (4 * batch_size, 3, 224, 224), dtype=torch.uint8, generator=generator)
    images = ImageSet("noise", pixels, torch.arange(4 * batch_size), ("thing",), ("a {}.",))
    classes = RobustCLIP.unit(torch.randn(1000, 512, generator=generator))
    return Case(f"{arch}, random weights, batch {batch_size}", RobustCLIP(clip), images, classes, batch_size, pairs)


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Seconds of both kinds of step, wall and CPU, and of filling and opening the cache."""
    began = time.perf_counter()
    teacher_embeddings(case.model, case.images, device=CPU, folder=folder)
    filled = time.perf_counter() - began
    began = time.perf_counter()
    kept = teacher_embeddings(case.model, case.images, device=CPU, folder=folder)
    opened = time.perf_counter() - began
    teacher = case.model.frozen_copy()
    method, train = METHODS["agft"](name="agft"), TrainConfig(batch_size=case.batch_size)
    updater = Updater(train, list(case.model.visual.parameters()), 10_000, CPU)
    context = Context(case.classes, 0, 0, case.batch_size)

    def step(index: Tensor, lookup: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        pixels = case.images.images[index].float() / 255
        batch = Batch(pixels, case.images.labels[index], index, lookup(index, pixels))
        updater.begin()
        updater.add(method.loss(case.model, batch, AttackConfig(), context=context))
        updater.finish()
        return time.perf_counter() - wall, time.process_time() - cpu

    def cached(index: Tensor, _: Tensor) -> Tensor:
        return kept[index]

    def live(_: Tensor, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return teacher.embed(pixels)

    order = torch.randperm(len(case.images), generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[tuple[float, float]]] = {"cached": [], "live": []}
    with exact_math():
        for pair in range(-1, case.pairs):  # the first pair only warms up
            index = order[torch.arange(case.batch_size).add((pair + 1) * case.batch_size) % len(order)]
            kinds = [("cached", cached), ("live", live)]
            for name, lookup in kinds if pair % 2 else kinds[::-1]:
                seconds = step(index, lookup)
                if pair >= 0:
                    taken[name].append(seconds)
    return {
        "case": case.name,
        "pairs": case.pairs,
        "fill": {"images": len(case.images), "seconds": filled},
        "open_seconds": opened,
        **{kind: summary(taken, which) for which, kind in enumerate(("wall", "cpu"))},
    }


def summary(taken: dict[str, list[tuple[float, float]]], which: int) -> dict[str, float]:
    cached, live = ([seconds[which] for seconds in taken[name]] for name in ("cached", "live"))
    ratios = sorted(a / b for a, b in zip(cached, live, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "cached_median_seconds": statistics.median(cached),
        "live_median_seconds": statistics.median(live),
        "ratio_of_medians": statistics.median(cached) / statistics.median(live),
        "median_of_paired_ratios": statistics.median(ratios),
        "paired_ratios_lower_quartile": low,
        "paired_ratios_upper_quartile": high,
    }


def measure_opening(folder: Path, rows: int = 1_281_167, width: int = 512) -> dict[str, float]:
    """Writing and verifying the largest file one meets; the second reading comes from the page cache."""
    path, block = folder / "large.safetensors", torch.randn(16384, width)
    began = time.perf_counter()
    writer = Writer(path, (rows, width), {"images": rows}, batch=32)
    for first in range(0, rows, len(block)):
        writer.add(block[: rows - first])
    writer.finish()
    written = time.perf_counter() - began
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF)
        began = time.perf_counter()
        kept = read_embeddings(path, {"images": rows}, batch=32)
        assert kept is not None
        after = resource.getrusage(resource.RUSAGE_SELF)
        times.append((time.perf_counter() - began, after.ru_utime - before.ru_utime))
    index = torch.randperm(rows)[:256]
    began = time.perf_counter()
    kept[index]
    return {
        "gigabytes": path.stat().st_size / 1e9,
        "write_seconds": written,
        "open_from_disk_seconds": times[0][0],
        "open_from_page_cache_seconds": min(wall for wall, _ in times[1:]),
        "open_cpu_seconds": min(cpu for _, cpu in times[1:]),
        "lookup_of_256_rows_seconds": time.perf_counter() - began,
    }


def machine(threads: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "commit": commit.stdout.strip(),
        "command": "python " + " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny-pairs", type=int, default=60)
    parser.add_argument("--large-pairs", type=int, default=16)
    parser.add_argument("--large-batch", type=int, default=8)
    parser.add_argument("--opening", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "teacher-cache.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"machine": machine(args.threads), "steps": []}
    with tempfile.TemporaryDirectory() as folder:
        for case in (lambda: tiny_case(args.tiny_pairs), lambda: large_case(args.large_pairs, args.large_batch)):
            found = measure(case(), Path(folder))
            result["steps"].append(found)
            for kind in ("wall", "cpu"):
                numbers = found[kind]
                print(
                    f"{found['case']}, {kind} time: cached {numbers['cached_median_seconds']:.4f} s, with the teacher "
                    f"{numbers['live_median_seconds']:.4f} s; {1 - numbers['median_of_paired_ratios']:.1%} less "
                    f"(median of {found['pairs']} pairs)",
                    flush=True,
                )
        if args.opening:
            result["opening"] = measure_opening(Path(folder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
