"""Images per second and memory of an AGFT step on ViT-B/32 with random weights, for every precision and option.

    python tests/bench/training_step.py [--device cuda] [--batch 128] [--steps 20] [--out tests/bench/results/NAME.json]

Needs torch, open_clip and pydantic only. `reference` is a straightforward eager fp16 step as the official code does it:
everything in autocast, the teacher recomputed, the attack on a mean loss through the training model, GradScaler. All
variants run in turn, block by block, several rounds in one process, so that what else the machine does meets them all;
medians over the blocks and ratios to the reference. Each variant's peak memory is measured on its own.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from trainers.model import bundled as tiny
from trainers.model.build import Description, build_clip
from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context
from trainers.objectives.agft import AGFT
from trainers.schema.training import AttackConfig, TrainConfig
from trainers.training.compiled import compile_encoder
from trainers.training.update import Updater

METHOD, ATTACK, CLASSES = AGFT(), AttackConfig(), 1000
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "fp16, activation checkpointing": {"precision": "fp16", "activation_checkpointing": True},
    "bf16, compiled": {"precision": "bf16", "compile": True},
    "fp16, compiled": {"precision": "fp16", "compile": True},
}
Step = Callable[[], float]


def clip_of(arch: str, device: torch.device) -> nn.Module:
    tiny.register()
    torch.manual_seed(0)
    config = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    clip = build_clip(Description(arch, open_clip.get_model_config(arch), config))
    with torch.no_grad():
        clip.logit_scale.fill_(4.6052)  # type: ignore[operator, union-attr]
    return clip.to(device)


def ours(arch: str, batch: int, device: torch.device, options: dict[str, Any]) -> tuple[Step, str | None]:
    """A step as training takes it: cached teacher, fp32 losses, summed attack. Also why it is not compiled, if so."""
    train = TrainConfig.model_validate({"optimizer": {"lr": 1e-5}, **options})
    model = RobustCLIP(clip_of(arch, device))
    images, classes = inputs(model, batch, device)
    with torch.no_grad():
        teacher = model.embed(images)
    model.precision = train.precision
    updater = Updater(train, list(model.visual.parameters()), 1_000_000, device)
    if train.activation_checkpointing:
        model.use_activation_checkpointing()
    if train.compile:
        compile_encoder(model, [images])
    data = Batch(images, torch.arange(batch, device=device) % CLASSES, torch.arange(batch, device=device), teacher)
    context = Context(classes, seed=0, epoch=0, global_batch=batch)

    def step() -> float:
        updater.begin()
        updater.add(METHOD.loss(model, data, ATTACK, context=context))
        return updater.finish()["loss"]

    return step, model.compile_note


def reference(arch: str, batch: int, device: torch.device) -> Step:
    """The same mathematics, written down directly as one would in a script: eager, fp16 autocast around everything."""
    model = RobustCLIP(clip_of(arch, device))
    visual, mean, std = model.visual, model.mean, model.std
    teacher = copy.deepcopy(visual).requires_grad_(False)
    images, classes = inputs(model, batch, device)
    optimizer = torch.optim.SGD(visual.parameters(), lr=1e-5, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type)
    criterion = nn.CrossEntropyLoss()

    def logits(encoder: nn.Module, x: Tensor, scale: float) -> Tensor:
        features = encoder((x - mean) / std)
        return scale * (features / features.norm(dim=1, keepdim=True)) @ classes.T

    def step() -> float:
        with torch.autocast(device.type, torch.float16):
            with torch.no_grad():
                target = logits(teacher, images, 72.0).softmax(1)
            visual.eval().requires_grad_(False)
            attacked = (images + torch.empty_like(images).uniform_(-1 / 255, 1 / 255)).clamp(0, 1)
            for _ in range(2):
                attacked.requires_grad_(True)
                (gradient,) = torch.autograd.grad(criterion(logits(visual, attacked, 180.0), target), attacked)
                moved = attacked.detach() + gradient.sign() / 255
                attacked = (images + (moved - images).clamp(-1 / 255, 1 / 255)).clamp(0, 1).detach()
            visual.train().requires_grad_(True)
            loss = criterion(logits(visual, attacked, 180.0), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return float(loss.detach())

    return step


def inputs(model: RobustCLIP, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, model.image_size, model.image_size, generator=generator)
    width = model.embed(images[:1].to(device)).shape[1]
    classes = nn.functional.normalize(torch.randn(CLASSES, width, generator=generator), dim=1)
    return images.to(device), classes.to(device)


def seconds(step: Step, steps: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def peak_gib(make: Callable[[], Step], device: torch.device) -> float | None:
    """Peak of allocated memory over three steps, with nothing else on the device."""
    if device.type != "cuda":
        return None
    step = make()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    peak = torch.cuda.max_memory_allocated() / 2**30
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return peak


def hardware(device: torch.device) -> str:
    cpu = f"{platform.processor() or platform.machine()} CPU"
    return torch.cuda.get_device_name() if device.type == "cuda" else cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arch", default="ViT-B-32-quickgelu")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device(given.device)

    makers: dict[str, Callable[[], Step]] = {"reference": lambda: reference(given.arch, given.batch, device)}
    notes: dict[str, str | None] = {}
    for name in given.variants:
        makers[name] = lambda name=name: ours(given.arch, given.batch, device, VARIANTS[name])[0]
    memory = {name: peak_gib(make, device) for name, make in makers.items()}
    steps: dict[str, Step] = {"reference": makers["reference"]()}
    for name in given.variants:
        steps[name], notes[name] = ours(given.arch, given.batch, device, VARIANTS[name])
    for step in steps.values():
        seconds(step, 3, device)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(given.rounds):
        for name, step in list(steps.items())[:: 1 if number % 2 == 0 else -1]:
            taken[name].append(seconds(step, given.steps, device))
    base = statistics.median(taken["reference"])
    rows = [
        {
            "variant": name, "images_per_second": round(given.batch / statistics.median(times), 1),
            "speed_over_reference": round(base / statistics.median(times), 3), "peak_gib": memory[name],
            "note": notes.get(name),
        }
        for name, times in taken.items()
    ]  # fmt: skip
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "hardware": hardware(device), "torch": torch.__version__, "open_clip": open_clip.__version__,
        "python": platform.python_version(), "commit": commit.stdout.strip(), "command": " ".join(sys.argv),
        "arch": given.arch, "batch": given.batch, "steps": given.steps, "rounds": given.rounds, "rows": rows,
    }  # fmt: skip
    print(f"{record['hardware']}, torch {torch.__version__}, {given.arch}, batch {given.batch}")
    for row in rows:
        peak = "" if row["peak_gib"] is None else f"  {row['peak_gib']:6.2f} GiB"
        rate = f"{row['images_per_second']:>9.1f} images/s  {row['speed_over_reference']:>6.2f} x"
        print(f"{row['variant']:<32} {rate}{peak}  {row['note'] or ''}".rstrip())
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
