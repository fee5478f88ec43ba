"""Memory and time of PGD-20 per image on a ViT-B/32 with random weights, through the engine that every evaluation uses.

    PYTHONPATH=. python tests/bench/pgd_cost.py [--arch ViT-B-32-quickgelu] [--threads 2] [--images 64] [--out FILE]

Protocol paper: every image, every step, so that random weights cost what trained ones do. On CUDA if there is a device.
Stated are wall and CPU seconds for each image (median of rounds; on CUDA after one to warm up) and the peak of memory:
on CUDA what torch allocated, on a CPU the process's largest resident set in a process of its own. On a machine that has
other work the CPU seconds are the ones to trust.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import open_clip
import torch

from trainers.data import ImageSet
from trainers.evaluation.measure import measure
from trainers.evaluation.scorer import Scorer, fitting_batch
from trainers.model.build import Description, build_clip
from trainers.model.robust import RobustCLIP
from trainers.schema.attacks import PGD
from trainers.schema.suite import AttackAt

CLASSES = 1000


def cost(arch: str, threads: int, images: int, rounds: int, batch_size: int | None) -> dict[str, Any]:
    """Of one batch size, None: what the engine chooses itself."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = open_clip.get_model_config(arch)
    assert config is not None, arch
    scorer = Scorer(
        RobustCLIP(build_clip(Description(arch, config, {})).to(device)), torch.randn(CLASSES, config["embed_dim"])
    )
    shape = (3, scorer.model.image_size, scorer.model.image_size)
    pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8)
    names = tuple(f"class {number}" for number in range(CLASSES))
    drawn = ImageSet("random", pixels, torch.arange(images) % CLASSES, names, ("{}",))
    entry = AttackAt(attack=PGD(steps=20), eps=(1 / 255,))
    seconds, busy = [], []
    for _ in range(rounds + (device.type == "cuda")):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        before, cpu = time.perf_counter(), time.process_time()
        measure(scorer, drawn, torch.arange(images), entry, protocol="paper", batch_size=batch_size)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
        busy.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {
        "batch_size": batch_size or fitting_batch(scorer, shape),
        "chosen_by": "the engine" if batch_size is None else "--batch-sizes",
        "images": images,
        "seconds_per_image": statistics.median(seconds[-rounds:]) / images,
        "cpu_seconds_per_image": statistics.median(busy[-rounds:]) / images,
        "peak_bytes": peak,
        "peak_is": "torch.cuda.max_memory_allocated"
        if device.type == "cuda"
        else "largest resident set of the process",
        "micro_batch": scorer.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ViT-B-32-quickgelu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[32], help="beside the engine's own choice")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(cost(given.arch, given.threads, given.images, given.rounds, given.one or None)))
        return
    rows = []
    for batch_size in (*given.batch_sizes, 0):
        command = [sys.executable, __file__, "--one", str(batch_size), "--arch", given.arch]
        for name in ("threads", "images", "rounds"):
            command += [f"--{name}", str(getattr(given, name))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {
        "what": "PGD-20, every image and step, 1000 classes; 21 forward, 20 backward, and one forward each for "
        "the clean image and the reading of the adversarial one",
        "arch": f"{given.arch}, random weights",
        "rows": rows,
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
