"""What a suite, or a study's training, costs in passes through the image encoder; in hours where a rate is known."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from study.config import StudyConfig
from study.evaluation_outlook import outlook
from trainers.data import DATASETS
from trainers.suite import Suite

__all__ = ["Assumed", "Rate", "cost_of", "cost_text", "measured_rate", "training_passes"]

FOOLED_PASSES = 6  # of an image before an iterate fools it: 4 to 7 on the tiny CLIP under PGD-20 and APGD
SECONDS = 2.0  # of measuring, at least


@dataclass(frozen=True)
class Assumed:
    """Shares of images that stay right, 0 <= robust <= clean <= 1; they decide what skipping saves."""

    clean: float = 0.6
    robust: float = 0.4


@dataclass(frozen=True)
class Rate:
    """Seconds of one device for one image: a forward pass alone, and a forward with its backward to the image."""

    forward: float
    both: float
    where: str

    def hours(self, passes: Mapping[str, float]) -> float:
        """Of so many `forward` and `backward` passes."""
        alone = passes["forward"] - passes["backward"]
        return (alone * self.forward + passes["backward"] * self.both) / 3600


def cost_of(suite: Suite, assumed: Assumed, rate: Rate | None) -> dict[str, Any]:
    """Passes of one model through the suite, as JSON values: `at_most` without any skipping, and `expected`.

    Expected, in protocol strict: an image that is wrong already is only looked at, one that is fooled takes
    FOOLED_PASSES, one that stays right takes all. Sanity checks and padding are not in it.
    """
    rows = []
    for row in outlook(suite):
        most, images, radii = row["passes"], row["images"], len(row["eps"])
        expected = dict(most)
        if suite.protocol == "strict":
            fooled = min(FOOLED_PASSES, most["forward"] / (images * radii)) * (assumed.clean - assumed.robust)
            for kind in expected:
                looks = images * (1 + radii) if kind == "forward" else 0
                attack = max(0, most[kind] - images * (kind == "forward"))
                expected[kind] = round(looks + assumed.robust * attack + fooled * images * radii)
        rows.append({**row, "at_most": most, "expected": expected, **_hours(most, expected, rate)})
        del rows[-1]["passes"]
    total = {
        name: {kind: sum(row[name][kind] for row in rows) for kind in ("forward", "backward")}
        for name in ("at_most", "expected")
    }
    return {
        "suite": suite.name,
        "protocol": suite.protocol,
        "assumed": asdict(assumed),
        "rate": None if rate is None else asdict(rate),
        "rows": rows,
        "total": {**total, **_hours(total["at_most"], total["expected"], rate)},
    }


def _hours(most: Mapping[str, float], expected: Mapping[str, float], rate: Rate | None) -> dict[str, Any]:
    if rate is None:
        return {}
    return {"hours_at_most": rate.hours(most), "hours_expected": rate.hours(expected)}


def training_passes(spec: StudyConfig) -> dict[str, int]:
    """Of one full-length trial at the file's own settings: the attack's steps and the update, for every image.

    The update's backward pass also computes the weights' gradients, which costs about twice one to the image alone; the
    teacher's forward is cached, and evaluations are left out.
    """
    train, entry = spec.train, DATASETS.get(spec.data.train)
    images = train.samples_per_epoch or (entry.num_images if entry is not None else 0)
    each = spec.attack.restarts * spec.attack.steps + (spec.attack.restarts if spec.attack.restarts > 1 else 0) + 1
    gradients = spec.attack.restarts * spec.attack.steps + 1
    return {"forward": train.epochs * images * each, "backward": train.epochs * images * gradients}


def measured_rate(named: str, home: Path) -> Rate:
    """Of any MODEL of `agft evaluate`, on this machine's first device."""
    import torch

    from study.evaluation_models import Gallery
    from trainers.model import RobustCLIP
    from trainers.scorer import Scorer, exact

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = RobustCLIP(Gallery(home, lambda _: None).subject(named, path="--measure").clip.to(device))
    scorer = Scorer(model, torch.eye(2, int(model.embed(torch.zeros(1, 3, 32, 32, device=device)).shape[1])))
    images = torch.rand(scorer.size, 3, model.image_size, model.image_size, device=device)

    def forward() -> None:
        with torch.no_grad():
            scorer(images)

    def both() -> None:
        candidates = images.clone().requires_grad_(True)
        torch.autograd.grad(scorer(candidates).sum(), candidates)

    def seconds(work: Any) -> float:
        """Of one image, the median of as many rounds as SECONDS hold, at least three."""
        found: list[float] = []
        work()
        while len(found) < 3 or sum(found) < SECONDS:
            before = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - before)
        return sorted(found)[len(found) // 2] / scorer.size

    with exact(model):
        where = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
        return Rate(seconds(forward), seconds(both), where)


def cost_text(found: Mapping[str, Any], training: Mapping[str, int] | None = None) -> str:
    """For a person."""
    assumed, rate, total = found["assumed"], found["rate"], found["total"]
    timed = rate is not None
    titles = ["dataset", "attack", "radii", "images", "passes at most", "expected", *(["hours"] if timed else [])]
    rows = [
        [
            row["dataset"], row["attack"], ", ".join(row["eps"]), f"{row['images']:,}", _short(row["at_most"]),
            _short(row["expected"]), *([f"{row['hours_expected']:.2f}"] if timed else []),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    rows.append(["all", "", "", "", _short(total["at_most"]), _short(total["expected"]),
                 *([f"{total['hours_expected']:.2f}"] if timed else [])])  # fmt: skip
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    heading = f"suite {found['suite']}, protocol {found['protocol']}"
    lines = [f"{heading}: passes of one image through the encoder, forward and backward"]
    for row in [titles, *rows]:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if column < 3 else cell.rjust(width) for column, (cell, width) in pairs]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    if found["protocol"] == "strict":
        clean, robust = (f"{100 * assumed[name]:g} %" for name in ("clean", "robust"))
        lines.append(f"expected: if {clean} are right without attack (--clean) and {robust} under it (--robust)")
    else:
        lines.append("protocol paper skips nothing: expected is what it costs at most")
    if timed:
        forward, both = (f"{1000 * rate[name]:.3g} ms" for name in ("forward", "both"))
        lines.append(f"hours: of one device like this one ({rate['where']}), measured just now, {forward} an image")
        lines.append(f"       forward and {both} with backward; at most {total['hours_at_most']:.2f}")
    else:
        lines.append(
            "hours: not known; --measure MODEL (tiny-clip, ARCH:PRETRAINED or a file) times it on this machine"
        )
    if training is not None:
        ratio = sum(total["expected"].values()) / sum(training.values())
        lines.append(f"training: one full trial of the study is {_short(training)} passes; this suite expects "
                     f"{ratio:.2g} times as many")  # fmt: skip
    return "\n".join(lines)


def _short(passes: Mapping[str, float]) -> str:
    """`1.2 M`: both kinds together, three digits."""
    value = float(sum(passes.values()))
    for unit in ("", " k", " M"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} G" if value < 999.5 else f"{value:,.0f} G"
