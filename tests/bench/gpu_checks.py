"""What only a GPU can say about this package, one function a question; `gpu_check.py` runs them and keeps the answers.

A check takes `Sizes` and yields named figures as it finds them: `{name: value}` or `{name: Figure}`. It may raise: then
that is its answer. Nothing of it is a test of the CPU's numbers, but every check runs on a CPU too, at toy sizes.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.distributed as dist
import training_step as bench
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from trainers import distributed, draws
from trainers.data.prefetch import prefetched
from trainers.data.prepared.shards import Manifest, Shard, ShardedImages
from trainers.evaluation.scorer import Scorer, exact, fitting_batch
from trainers.model.robust import RobustCLIP, exact_math
from trainers.objectives import Batch, Context
from trainers.objectives.agft import AGFT
from trainers.schema.records import Decision, Progress
from trainers.schema.training import AttackConfig, TrainConfig
from trainers.training.compiled import compile_encoder
from trainers.training.loop import train
from trainers.training.update import Updater
from trainers.trial_config import TrialConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CUDA = DEVICE.type == "cuda"


@dataclass(frozen=True)
class Sizes:
    """How large everything is; `SMALL` is for machines without a GPU."""

    arch: str = "ViT-B-32-quickgelu"
    large_arch: str = "ViT-L-14-quickgelu"
    batch: int = 256
    few: int = 32  # images a GPU where launches are the limit
    large_batch: int = 128
    steps: int = 20
    matrix: int = 8192
    copied_mib: int = 4096
    stored_images: int = 16384
    shard: int = 2048
    side: int = 224


SMALL = Sizes(
    arch="tiny-clip", large_arch="tiny-clip", batch=4, few=2, large_batch=2, steps=1, matrix=256, copied_mib=4,
    stored_images=64, shard=32, side=32,
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A measured rate beside what the hardware allows, both in `unit`; `limit` None where none was measured."""

    value: float
    unit: str
    limit: float | None = None


Answers = Iterator[dict[str, Any]]
Check = Callable[[Sizes, dict[str, float]], Answers]
"""`(sizes, limits)`: limits are those that `limits_of_the_machine` found, by name; empty if it did not run."""


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], times: int = 10, warm: int = 3) -> float:
    """Median seconds of one call, the device's work included."""
    for _ in range(min(warm, times)):
        work()
    synchronise()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        synchronise()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if CUDA else None


def forget_peak() -> None:
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Training:
    """An AGFT step on random weights and images, the teacher's rows given, as `trainers.training.run` takes it."""

    def __init__(self, arch: str, batch: int, **options: Any) -> None:
        config = TrainConfig.model_validate({"optimizer": {"lr": 1e-5}, **options})
        self.model = RobustCLIP(bench.clip_of(arch, DEVICE))
        images, classes = bench.inputs(self.model, batch, DEVICE)
        with torch.no_grad():
            teacher = self.model.embed(images)
        self.model.precision = options.get("precision", "fp32")
        self.updater = Updater(config, list(self.model.visual.parameters()), 10**6, DEVICE)
        index = torch.arange(batch, device=DEVICE)
        self.batch = Batch(images, index % bench.CLASSES, index, teacher)
        self.context = Context(classes, seed=0, epoch=0, global_batch=batch)

    def gradients(self) -> None:
        self.updater.begin()
        self.updater.add(AGFT().loss(self.model, self.batch, AttackConfig(), context=self.context))

    def step(self) -> float:
        self.gradients()
        return self.updater.finish()["loss"]

    def flops(self) -> float:
        """Of one step, counted by its operations."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return float(counter.get_total_flops())


# --- the machine, and what it can do at best --------------------------------------------------------------------------


def machine(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """Which hardware and versions these are."""
    yield {
        "device": bench.hardware(DEVICE), "torch": torch.__version__, "open_clip": open_clip.__version__,
        "python": sys.version.split()[0], "cpus": os.cpu_count(),
    }  # fmt: skip
    if CUDA:
        yield {
            "capability": list(torch.cuda.get_device_capability()), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "nccl": list(torch.cuda.nccl.version()),
            "free_gib": torch.cuda.mem_get_info()[0] / 2**30,
        }  # fmt: skip


def limits_of_the_machine(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """The best that a plain matrix product and a plain copy reach here: what later figures are held against."""
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        a, b = (torch.randn(sizes.matrix, sizes.matrix, device=DEVICE).to(dtype) for _ in range(2))
        with exact_math():
            taken = seconds(lambda a=a, b=b: a @ b)
        yield {f"{name} matrix product": Figure(2 * sizes.matrix**3 / taken / 1e12, "TFLOP/s")}
    there = torch.empty(sizes.copied_mib << 20, dtype=torch.uint8, device=DEVICE)
    taken = seconds(lambda: there.clone())
    yield {"device memory": Figure(2 * there.nbytes / taken / 1e9, "GB/s")}
    here = torch.empty(min(1024, sizes.copied_mib) << 20, dtype=torch.uint8, pin_memory=CUDA)
    onto = torch.empty_like(here, device=DEVICE)
    yield {"host to device": Figure(here.nbytes / seconds(lambda: onto.copy_(here)) / 1e9, "GB/s")}


# --- is it the same function as on a CPU? -----------------------------------------------------------------------------


def noise_is_the_cpus(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """The attack's start is a function of seed, epoch and image alone, on any device."""
    index, shape = torch.tensor([0, 1, 7, 1_281_166, 2**31 - 1]), (3, sizes.side, sizes.side)
    for keys in ((0, 0, 0), (2**31 - 1, 9, 3), (5, -2, 0)):
        here, there = draws.noise(*keys, index, shape), draws.noise(*keys, index.to(DEVICE), shape).cpu()
        yield {f"equal {keys}": torch.equal(here, there)}


def collectives(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """Every dtype that training sends, through the backend of this device, in a group of one."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if CUDA else "gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1
        )
        try:
            moved = distributed._device()
            yield {"device": str(moved)}
            for name, values in {"int64": torch.tensor([2**40, -1]), "fp32": torch.rand(3)}.items():
                there = values.to(moved)
                dist.all_reduce(there)
                yield {f"all_reduce {name}": torch.equal(there.cpu(), values)}
            for name, values in {"uint8": torch.ones(2, 3, dtype=torch.uint8), "empty": torch.zeros(0, 4)}.items():
                parts = [torch.empty_like(values, device=moved)]
                dist.all_gather(parts, values.to(moved))
                yield {f"all_gather {name}": torch.equal(parts[0].cpu(), values)}
            box = torch.tensor([7], device=moved)
            dist.broadcast(box, src=0)
            dist.barrier()
            yield {"broadcast": int(box) == 7}
        finally:
            dist.destroy_process_group()


def a_run(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """`train` on the tiny CLIP: as on the CPU; twice the same; resumed as if never left; in half precision, too."""
    epochs, samples = (2, 512) if CUDA else (2, 16)

    def run(device: torch.device, *, epochs: int = epochs, leave: int = 0, resume: Path | None = None, **options: Any):
        config = TrialConfig.model_validate({
            "model": {"arch": "tiny-clip", "pretrained": "bundled"},
            "method": {"name": "agft", "logit_scale": {"of_model": 1.0}},
            "attack": {"eps": "6/255"},
            "data": {"train": "tiny-color-shapes"},
            "train": {"epochs": epochs, "batch_size": min(128, samples // 2), "samples_per_epoch": samples, **options},
            "evaluate": {
                "name": "select", "datasets": ["tiny-shapes"],
                "attacks": [{"attack": {"name": "pgd", "steps": 5}, "eps": ["6/255"], "samples": min(64, samples)}],
            },
        })  # fmt: skip
        folder, losses = Path(tempfile.mkdtemp(dir=scratch)), {}

        def report(progress: Progress) -> Decision:
            return Decision.STOP if progress.record.epoch == leave else Decision.CONTINUE

        result = train(
            config, report=report, workdir=folder, device=device, resume_from=resume,
            observe=lambda step, values: losses.__setitem__(step, values["loss"]),
        )  # fmt: skip
        return folder, losses, [(r.clean_accuracy, r.robust_accuracy) for r in result.history]

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AGFT_CACHE"] = scratch
        _, cpu, counts = run(torch.device("cpu"), precision="fp32")
        _, ours, found = run(DEVICE, precision="fp32")
        apart = max(abs(cpu[step] - ours[step]) / abs(cpu[step]) for step in cpu)
        yield {"largest relative loss difference to the CPU": apart, "accuracies": {"cpu": counts, "device": found}}
        yield {"loss within 1e-3 of the CPU's": apart < 1e-3}
        yield {"twice equal": run(DEVICE, precision="fp32")[1] == ours}
        half, first, _ = run(DEVICE, precision="fp32", leave=1)
        yield {"resume equal": {**first, **run(DEVICE, precision="fp32", resume=half)[1]} == ours}
        for precision in ("bf16", "fp16") if CUDA else ("bf16",):
            yield {f"accuracies in {precision}": run(DEVICE, epochs=1, precision=precision)[2]}


# --- how fast is a step? ----------------------------------------------------------------------------------------------

STEPS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "fp32": {"precision": "fp32"},
    "bf16 compiled": {"precision": "bf16"},
}


def step(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """AGFT's step in every precision, eager and compiled, beside a plain fp16 step as the official code takes it."""
    flops = Training(sizes.arch, 2).flops() / 2
    yield {"GFLOP an image": flops / 1e9}
    rates = {}
    for batch in (sizes.batch, sizes.few):
        for name in ("reference", *STEPS):
            if not CUDA and name in ("fp16", "bf16 compiled"):
                continue
            forget_peak()
            began, note = time.monotonic(), None
            if name == "reference":
                work = bench.reference(sizes.arch, batch, DEVICE)
            else:
                training = Training(sizes.arch, batch, **STEPS[name])
                if name.endswith("compiled"):
                    compile_encoder(training.model, [training.batch.images])
                    note = training.model.compile_note
                work = training.step
            with exact_math():
                taken = seconds(work, sizes.steps)
            rates[name, batch] = batch / taken
            peak = limits.get("fp32 matrix product" if name == "fp32" else "bf16 matrix product")
            yield {
                f"{name} at {batch}": Figure(batch * flops / taken / 1e12, "TFLOP/s", peak),
                f"{name} at {batch}, more": {
                    "images_per_second": batch / taken, "ms": taken * 1e3, "over_reference": None
                    if name == "reference" else rates[name, batch] / rates["reference", batch],
                    "peak_gib": peak_gib(), "ready_seconds": time.monotonic() - began, "note": note,
                },
            }  # fmt: skip
            del work


def graphed_step(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """What is to be had from one CUDA graph of attack, loss and backward, eager and compiled inside."""
    if not CUDA:
        yield {"left out": "needs CUDA"}
        return
    flops = Training(sizes.arch, 2).flops() / 2
    for batch, compiled in ((sizes.batch, False), (sizes.few, False), (sizes.batch, True), (sizes.few, True)):
        torch._dynamo.reset()
        training = Training(sizes.arch, batch, precision="bf16")
        if compiled:
            training.model.__dict__["compiled"] = torch.compile(training.model.visual, dynamic=False)
        with exact_math():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    training.step()
            torch.cuda.current_stream().wait_stream(side)
            training.updater.optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                training.gradients()

            def replay(graph: torch.cuda.CUDAGraph = graph, training: Training = training) -> None:
                graph.replay()
                training.updater.finish()

            taken = seconds(replay, sizes.steps)
        name = f"at {batch}{', compiled' if compiled else ''}"
        yield {
            name: Figure(batch * flops / taken / 1e12, "TFLOP/s", limits.get("bf16 matrix product")),
            f"{name}, images_per_second": batch / taken,
        }
        del graph, training
        torch.cuda.empty_cache()


def where_the_time_goes(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """One bf16 step: how long the device is idle, its dearest kernels, and every place where the host waits for it."""
    from torch.profiler import ProfilerActivity, profile

    training = Training(sizes.arch, sizes.batch, precision="bf16")
    for _ in range(3):
        training.step()
    synchronise()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as seen:
        began = time.perf_counter()
        training.step()
        synchronise()
        wall = time.perf_counter() - began
    yield {"wall_ms": wall * 1e3}
    if not CUDA:
        return
    kernels = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    by_name: dict[str, tuple[int, float]] = {}
    for event in kernels:
        count, taken = by_name.get(event.name[:70], (0, 0.0))
        by_name[event.name[:70]] = count + 1, taken + event.time_range.elapsed_us() / 1e3
    dearest = sorted(by_name.items(), key=lambda item: -item[1][1])[:15]
    busy = sum(taken for _, taken in by_name.values())
    yield {"kernels": len(kernels), "busy_ms": Figure(busy, "ms", wall * 1e3)}
    yield {"dearest (name, count, ms)": [[name, count, round(taken, 2)] for name, (count, taken) in dearest]}
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.step()
    torch.cuda.set_sync_debug_mode("default")
    yield {"host waits at": sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in caught})}


# --- evaluation, input, a large model ---------------------------------------------------------------------------------


def evaluation(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """fp32: is an image's verdict its own, wherever it stands in a batch? And images/s of one attack step."""
    model = RobustCLIP(bench.clip_of(sizes.arch, DEVICE))
    images, classes = bench.inputs(model, sizes.batch, DEVICE)
    scorer = Scorer(model, classes)
    scorer.size = min(scorer.size, sizes.batch // 2)
    index = torch.arange(sizes.batch, device=DEVICE)
    labels = index % bench.CLASSES

    def look(rows: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images[rows].clone().requires_grad_(True)
        logits = scorer(pixels)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[rows], reduction="sum"), pixels)
        return logits.detach(), gradient

    with exact(model):
        order = torch.randperm(sizes.batch, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        (logits, gradient), again, (there, moved) = look(index), look(index), look(order)
        yield {"twice equal": torch.equal(logits, again[0]) and torch.equal(gradient, again[1])}
        yield {"equal in any place": torch.equal(logits[order], there) and torch.equal(gradient[order], moved)}
        apart = float((gradient[order] - moved).abs().max() / gradient.abs().max())
        yield {"apart": {"logits": float((logits[order] - there).abs().max()), "gradient, relative": apart}}
        low = torch.rand(sizes.few, 3, 32, 32, device=DEVICE)

        def through_resizing() -> Tensor:
            pixels = low.clone().requires_grad_(True)
            return torch.autograd.grad(model.embed(pixels).square().sum(), pixels)[0]

        yield {"gradient through resizing twice equal": torch.equal(through_resizing(), through_resizing())}
        with FlopCounterMode(display=False) as counter:
            look(index)
        flops = counter.get_total_flops()
        for size in (32, 64, 128, 256) if CUDA else (scorer.size,):
            scorer.size = size
            taken = seconds(lambda: look(index), 3, 1)
            rate = Figure(flops / taken / 1e12, "TFLOP/s", limits.get("fp32 matrix product"))
            yield {f"attack step, micro-batch {size}": rate, f"images_per_second, {size}": sizes.batch / taken}
    yield {"images together under attack": fitting_batch(Scorer(model, classes), tuple(images.shape[1:]))}


def input_path(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """A prepared set on this disk to the device: alone, and beside the bf16 step (how much slower is the step?)."""
    with tempfile.TemporaryDirectory() as made:
        folder, side = Path(made), RobustCLIP(bench.clip_of(sizes.arch, torch.device("cpu"))).image_size
        count = sizes.stored_images // sizes.shard
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (sizes.shard, 3, side, side), np.uint8)
            np.save(folder / f"{number}.npy", pixels)
        shards = tuple(Shard(f"{number}.npy", sizes.shard, "") for number in range(count))
        shape = (sizes.stored_images, 3, side, side)
        manifest = Manifest(1, "x", "x", (), (), "", (), "", shape, sizes.shard, shards, "", "", {}, {})
        images = ShardedImages(manifest, lambda file: folder / file)
        batches = torch.randperm(sizes.stored_images).split(sizes.batch)
        copied = limits.get("host to device")
        began = time.perf_counter()
        for _ in prefetched(images, batches, DEVICE):
            pass
        synchronise()
        rate = sizes.stored_images / (time.perf_counter() - began)
        room = None if copied is None else copied * 1e9 / (3 * side * side)
        yield {"alone": Figure(rate, "images/s", room)}
        training = Training(sizes.arch, sizes.batch, precision="bf16")
        plain = seconds(training.step, min(10, sizes.steps), 2)
        steps = min(len(batches), sizes.steps)
        synchronise()
        began = time.perf_counter()
        for pixels in prefetched(images, batches[:steps], DEVICE):
            training.batch.images.copy_(pixels.float() / 255)
            training.step()
        synchronise()
        beside = (time.perf_counter() - began) / steps
        yield {"step_ms": plain * 1e3, "step with reading_ms": beside * 1e3, "longer by": beside / plain - 1}


def large(sizes: Sizes, limits: dict[str, float]) -> Answers:
    """The largest of the usual encoders in bf16, with and without recomputed activations; an fp32 micro-batch of it."""
    for recomputed in (False, True):
        forget_peak()
        training = Training(sizes.large_arch, sizes.large_batch, precision="bf16")
        if recomputed:
            training.model.use_activation_checkpointing()
        taken = seconds(training.step, min(3, sizes.steps), 1)
        name = "activations recomputed" if recomputed else "plain"
        yield {name: {"images_per_second": sizes.large_batch / taken, "peak_gib": peak_gib()}}
        del training
    forget_peak()
    model = RobustCLIP(bench.clip_of(sizes.large_arch, DEVICE))
    images, classes = bench.inputs(model, 1, DEVICE)
    together = fitting_batch(Scorer(model, classes), tuple(images.shape[1:]))
    yield {"images together under attack": together, "micro-batch peak_gib": peak_gib()}


CHECKS: dict[str, Check] = {
    each.__name__: each
    for each in (
        machine, limits_of_the_machine, noise_is_the_cpus, collectives, a_run, step, evaluation, input_path,
        graphed_step, where_the_time_goes, large,
    )
}  # fmt: skip
