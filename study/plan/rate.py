"""How long one image takes to pass through an encoder: measured here, stated by a person, or assumed from its FLOPs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.errors import UserError
from trainers.device import task_device
from trainers.errors import nearest
from trainers.model.architectures import known_architectures

SECONDS = 5.0  # of measuring, at least
NO_TEXT = {"width": 64, "heads": 1, "layers": 1}  # the text side is not counted: anything that open_clip builds


@dataclass(frozen=True)
class Rate:
    """Seconds of one device for one image: a forward pass alone, and a forward with its backward to the image.

    `basis` says how they are known, in a sentence: a number that nobody measured must not look like one.
    """

    forward: float
    both: float
    basis: str

    def hours(self, passes: Mapping[str, float]) -> float:
        """Of so many `forward` and `backward` passes; every backward has a forward of its own."""
        alone = passes["forward"] - passes["backward"]
        return (alone * self.forward + passes["backward"] * self.both) / 3600


def chosen_rate(
    *, measure: str | None, seconds: float | None, tflops: float | None, arch: str | None, home: Path
) -> Rate | None:
    """What the options say; None if nothing."""
    given = {"--measure": measure, "--seconds-per-pass": seconds, "--tflops": tflops}
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{', '.join(named)}: each gives the time of a pass; use one")
    if measure is not None:
        return measured_rate(measure, home)
    if seconds is not None:
        return stated_rate(seconds)
    if tflops is None:
        return None
    if arch is None:
        raise UserError("--tflops: of which encoder? Name its --arch, or a study file")
    return assumed_rate(arch, tflops)


def stated_rate(seconds: float) -> Rate:
    """Forward and backward alike."""
    return Rate(seconds, 2 * seconds, f"as stated, {_ms(seconds)} a pass, forward or backward")


def assumed_rate(arch: str, tflops: float) -> Rate:
    """At a sustained speed of `tflops` 1e12 FLOP a second."""
    forward, backward = encoder_flops(arch)
    basis = (
        f"an assumption, nothing was measured: a device that sustains {tflops:g} TFLOP/s in fp32, and {arch} with "
        f"{forward / 1e9:.3g} GFLOP an image forward, {backward / 1e9:.3g} backward"
    )
    return Rate(forward / (tflops * 1e12), (forward + backward) / (tflops * 1e12), basis)


def without_content(arch: str, count: int) -> tuple[Any, Any]:
    """An open_clip model and so many images of its own resolution, on the meta device."""
    import open_clip
    import torch

    from trainers.model import bundled as tiny

    tiny.register()
    config = open_clip.get_model_config(arch)
    vision = {**config["vision_cfg"], "output_tokens": False}
    with torch.device("meta"):
        clip = open_clip.CLIP(config["embed_dim"], vision, NO_TEXT, quick_gelu=config.get("quick_gelu", False))
        size = clip.visual.image_size
        return clip, torch.empty(count, 3, *(size if isinstance(size, tuple) else (size, size)))


def encoder_flops(arch: str) -> tuple[float, float]:
    """Of one image through an open_clip encoder at its own resolution: forward, and backward to the image.

    A multiply-add is two. Counted by torch on tensors without content, in the encoder with frozen weights.
    """
    if arch not in (known := known_architectures()):
        close = nearest(arch, known)
        raise UserError(f"--arch: {arch}: no such architecture" + (f"; nearest: {', '.join(close)}" if close else ""))
    from torch.utils.flop_counter import FlopCounterMode

    clip, images = without_content(arch, 1)
    images.requires_grad_()
    with FlopCounterMode(display=False) as forward:
        embedding = clip.visual.requires_grad_(False)(images)
    with FlopCounterMode(display=False) as backward:
        embedding.sum().backward()
    return float(forward.get_total_flops()), float(backward.get_total_flops())


def measured_rate(named: str, home: Path) -> Rate:
    """Of any MODEL of `agft evaluate`, on this machine's first device, by the evaluation's own micro-batches."""
    import torch

    from study.evaluation.models import Gallery
    from trainers.evaluation.scorer import Scorer, exact
    from trainers.model.robust import RobustCLIP

    device = task_device()
    model = RobustCLIP(Gallery(home, lambda _: None).subject(named, path="--measure").clip.to(device))
    width = int(model.embed(torch.zeros(1, 3, model.image_size, model.image_size, device=device)).shape[1])
    scorer = Scorer(model, torch.eye(2, width))
    images = torch.rand(scorer.size, 3, model.image_size, model.image_size, device=device)

    def forward() -> None:
        with torch.no_grad():
            scorer(images)

    def both() -> None:
        candidates = images.clone().requires_grad_(True)
        torch.autograd.grad(scorer(candidates).sum(), candidates)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    with exact(model):
        alone, pair = (seconds / scorer.size for seconds in _medians((forward, both), wait))
    where = f"this CPU with {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    basis = f"measured just now on {where}: {_ms(alone)} an image forward, {_ms(pair)} with its backward"
    return Rate(alone, pair, basis)


def _medians(works: Sequence[Callable[[], None]], wait: Callable[[], None]) -> list[float]:
    """Seconds of each, in turn, so that what else the machine does meets all alike: as many rounds as SECONDS hold, at
    least three, and one before that is not counted.
    """
    found: list[list[float]] = [[] for _ in works]
    while len(found[0]) < 4 or sum(map(sum, found)) < SECONDS:
        for work, own in zip(works, found, strict=True):
            wait()
            before = time.perf_counter()
            work()
            wait()
            own.append(time.perf_counter() - before)
    return [statistics.median(own[1:]) for own in found]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
