"""What a trial costs before anything is measured: from a table of devices, FLOPs and counted activations.

Hours are passes x FLOPs at a stated share of a device's peak; memory is weights, optimizer and what a backward needs.
Reading and sending images are not in it. An estimate: the first epoch that a study of the kind has measured replaces it
(`study.plan.study.measured_cost`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from study.console import duration
from study.errors import UserError
from study.plan.rate import encoder_flops, without_content
from study.spec.config import StudyConfig
from trainers.data import dataset_entry
from trainers.schema.training import TrainConfig


@dataclass(frozen=True)
class Device:
    """By its maker's data sheet: `memory` in GB, peak TFLOP/s of dense matrix products by precision; what it cannot do
    in hardware is not there."""

    memory: float
    peak: Mapping[str, float]


DEVICES: dict[str, Device] = {
    "A100 80 GB": Device(80, {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312}),
    "H100 SXM": Device(80, {"fp32": 67, "tf32": 495, "bf16": 989, "fp16": 989}),
    "H200": Device(141, {"fp32": 67, "tf32": 495, "bf16": 989, "fp16": 989}),
    "L40S": Device(48, {"fp32": 91.6, "tf32": 183, "bf16": 362, "fp16": 362}),
    "L4": Device(24, {"fp32": 30.3, "tf32": 60, "bf16": 121, "fp16": 121}),
    "RTX 4090": Device(24, {"fp32": 82.6, "tf32": 82.6, "bf16": 165, "fp16": 165}),
    "T4": Device(16, {"fp32": 8.1, "fp16": 65}),
}
CPU = "this CPU"

# The share of the peak that training sustains: nobody has run it on a GPU, so these are assumptions. A CPU core's was
# measured against its own matrix products: 0.36 with the tiny CLIP, 0.85 with ViT-B/32 (fp32, one thread, AMD EPYC).
SHARES = {"fp32": 0.6, "tf32": 0.3, "bf16": 0.25, "fp16": 0.25}
OVERHEAD = 1.5e9  # bytes: the device's context, the libraries' workspaces, fragments
GBIT = {"10 GbE": 10, "25 GbE": 25, "100 GbE": 100}  # networks between nodes


@dataclass(frozen=True)
class Encoder:
    """An image encoder: FLOP of one image forward, number of parameters, and bytes that the backward of one image to
    the weights keeps in fp32."""

    flops: float
    parameters: int
    kept: float
    size: int
    width: int


@lru_cache
def encoder_of(arch: str) -> Encoder:
    """Counted by torch on tensors without content; `UserError` for an architecture that open_clip does not have."""
    flops, _ = encoder_flops(arch)
    import torch

    clip, images = without_content(arch, 2)
    weights = {id(each) for each in clip.visual.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if id(tensor if tensor._base is None else tensor._base) not in weights:
            storage = tensor.untyped_storage()
            kept[id(storage)] = storage  # held, so that no other one takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = clip.visual(images)
    count = sum(each.numel() for each in clip.visual.parameters())
    return Encoder(
        flops, count, sum(each.nbytes() for each in kept.values()) / 2, images.shape[2], int(output.shape[1])
    )


def precision_on(device: Device, wanted: str) -> str:
    """What `train.precision` is there: `auto` takes bf16 where the device has it, else fp32."""
    return ("bf16" if "bf16" in device.peak else "fp32") if wanted == "auto" else wanted


def memory_of(encoder: Encoder, train: TrainConfig, images: int, precision: str) -> float:
    """Bytes on one device while it trains on so many images at once."""
    half = 0.5 if precision in ("bf16", "fp16") else 1.0
    kept = encoder.kept * half * (0.3 if train.activation_checkpointing else 1.0)  # blocks' inputs, and one block
    return OVERHEAD + 4 * encoder.parameters * _copies(train) + images * (kept + 3 * 4 * encoder.size**2)


def _copies(train: TrainConfig) -> int:
    """Numbers a weight: itself, its gradient, the teacher's, the optimizer's, the average's."""
    return 3 + (2 if train.optimizer.name == "adamw" else 1) + (train.ema is not None)


def estimate(spec: StudyConfig, passes: Mapping[str, float]) -> dict[str, Any]:
    """As JSON values: bytes, and a row a device with hours of one full trial and of the study, memory, what fits.

    `passes`: as `study_passes`. On a study without GPUs the only device is this machine's CPU.
    """
    try:
        encoder = encoder_of(spec.model.arch)
    except UserError as error:
        return {"unknown": str(error)}
    train, workers = spec.train, spec.resources.workers
    rows = [_row(name, device, spec, encoder, passes) for name, device in _devices(spec).items()]
    entry = dataset_entry(spec.data.train, "data.train")
    state = 4 * encoder.parameters * (2 + (train.optimizer.name == "adamw") + (train.ema is not None))
    size = entry.files.size if entry.files else encoder.size
    return {
        "gflop_forward": encoder.flops / 1e9,
        "parameters": encoder.parameters,
        "images_at_once": _at_once(spec),
        "workers": workers,
        "rows": rows,
        "bytes_per_trial": state + 4 * encoder.parameters,
        "bytes": (state + 4 * encoder.parameters) * spec.budget.trials,
        "bytes_dataset": entry.num_images * 3 * size**2,
        "bytes_teacher": entry.num_images * encoder.width * 4 if train.teacher_cache else 0,
        "notes": list(_network(spec, encoder, passes)),
    }


def _at_once(spec: StudyConfig) -> int:
    share = -(-spec.train.batch_size // spec.resources.workers)
    return -(-share // spec.train.accumulation)


def _devices(spec: StudyConfig) -> dict[str, Device]:
    if spec.resources.gpus_per_worker:
        return DEVICES
    return {CPU: Device(0, {"fp32": _cpu_peak() * max(1.0, spec.resources.cpus_per_worker)})}


def _cpu_peak() -> float:
    """TFLOP/s of one core in fp32 matrix products, by a quarter of a second of them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right, count = torch.rand(512, 512), torch.rand(512, 512), 0
        began = time.process_time()
        while time.process_time() - began < 0.25:
            torch.mm(left, right)
            count += 1
        return count * 2 * 512**3 / (time.process_time() - began) / 1e12
    finally:
        torch.set_num_threads(threads)


def _row(name: str, device: Device, spec: StudyConfig, encoder: Encoder, passes: Mapping[str, float]) -> dict[str, Any]:
    wanted, workers = spec.train.precision, spec.resources.workers
    precision = "fp32" if name == CPU else precision_on(device, wanted)
    if precision not in device.peak:
        return {"device": name, "precision": precision, "lack": f"has no {precision}"}
    share = spec.resources.gpus_per_worker or 1.0

    def hours(count: float, how: str) -> float:
        return count * encoder.flops / (device.peak[how] * 1e12 * SHARES[how] * workers * share * 3600)

    searched = "tf32" if spec.evaluate.select.protocol == "fast" and "tf32" in device.peak else "fp32"
    trial = hours(passes["training"], precision) + hours(passes["evaluations"], searched)
    need = memory_of(encoder, spec.train, _at_once(spec), precision)
    if name == CPU:
        need = max(need, memory_of(encoder, spec.train, 0, precision) + _measuring(encoder))
    found = {
        "device": name, "precision": precision, "share": SHARES[precision], "peak_tflops": device.peak[precision],
        "hours_per_trial": trial, "hours": trial * spec.budget.trials, "memory": need, "lack": "",
    }  # fmt: skip
    if device.memory and need > device.memory * 1e9 * share:
        one = memory_of(encoder, spec.train, 1, precision) - memory_of(encoder, spec.train, 0, precision)
        most = int((device.memory * 1e9 * share - memory_of(encoder, spec.train, 0, precision)) // one)
        found["lack"] = f"does not fit: at most {most} images at once" if most > 0 else "does not fit"
    return found


def _measuring(encoder: Encoder) -> float:
    """Bytes of an evaluation's graph on a CPU; on a GPU it is made to fit."""
    from trainers.evaluation.scorer import CPU_BYTES, USUAL

    return min(CPU_BYTES, USUAL["cpu"] * encoder.kept)


def _network(spec: StudyConfig, encoder: Encoder, passes: Mapping[str, float]) -> Iterator[str]:
    """Where an update of several workers, one a node, takes longer than one worker's."""
    workers = spec.resources.workers
    if workers == 1 or not spec.resources.gpus_per_worker:
        return
    device = DEVICES["A100 80 GB"]
    precision = precision_on(device, spec.train.precision)
    images = spec.train.samples_per_epoch or dataset_entry(spec.data.train, "data.train").num_images
    work = passes["training"] / (spec.train.epochs * images) * spec.train.batch_size * encoder.flops
    alone = work / (device.peak[precision] * 1e12 * SHARES[precision])
    for network, gbit in GBIT.items():
        exchange = 2 * (workers - 1) / workers * 4 * encoder.parameters * 8 / (gbit * 1e9)
        if alone / workers + exchange > alone:
            yield (
                f"resources.workers: {workers} on nodes joined by {network} are slower than one: an update takes "
                f"{alone / workers + exchange:.2g} s, {exchange:.2g} s of it gradients, and {alone:.2g} s on one A100 "
                "(an estimate; nothing overlaps)"
            )


# For a person.


def estimate_lines(found: Mapping[str, Any]) -> list[str]:
    """No line is wider than a terminal of 80 columns."""
    if "unknown" in found:
        return [f"  cost          not known: {found['unknown']}"]
    rows = [row for row in found["rows"] if not row["lack"].startswith("has no")]
    shares = ", ".join(dict.fromkeys(f"{row['precision']} {100 * row['share']:.0f} %" for row in rows))
    lines = [
        f"  cost          an estimate, nothing was measured: passes x {found['gflop_forward']:.3g} GFLOP at",
        f"                {shares} of the peak, reading not counted",
        "                (the first measured epoch replaces it)",
        f"                {'device':<12} {'each in':<7} {'a trial':>9} {'in all':>9}  memory",
    ]
    for row in found["rows"]:
        if row["lack"].startswith("has no"):
            lines.append(f"                {row['device']:<12} {row['precision']:<7} {row['lack']}")
            continue
        took = f"{duration(3600 * row['hours_per_trial']):>9} {duration(3600 * row['hours']):>9}"
        memory = f"{row['memory'] / 1e9:.3g} GB" + (", too much" if row["lack"] else "")
        lines.append(f"                {row['device']:<12} {row['precision']:<7} {took}  {memory}")
        if ": " in row["lack"]:
            lines.append(f"                  {row['lack']}")
    each = _bytes(found["bytes_per_trial"])
    lines.append(f"  storage       {_bytes(found['bytes'])} of checkpoints, {each} a trial (an estimate)")
    teacher = f", {_bytes(found['bytes_teacher'])} of the teacher's embeddings" if found["bytes_teacher"] else ""
    lines.append(f"                {_bytes(found['bytes_dataset'])} of pixels{teacher}")
    return lines


def _bytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
