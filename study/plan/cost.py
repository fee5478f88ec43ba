"""What evaluating a suite costs, and what a study does: image passes through the encoder, and hours at a known rate.

A pass is one image forward, or one backward. Counted for one model; the text side (once a class) is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from study.evaluation.units import units
from study.plan.rate import Rate
from study.spec.config import StudyConfig
from study.spec.evaluation import Selection
from trainers.data import dataset_entry
from trainers.objectives import METHODS, Objective
from trainers.schema.suite import AttackAt, Protocol, Suite
from trainers.schema.training import AttackConfig
from trainers.schema.units import eps_label


def update_passes(method: Mapping[str, Any], attack: Mapping[str, Any]) -> dict[str, float]:
    """Encoder passes an image and update, in units of one forward; a backward to images or to weights is one too.

    An attack step is a forward and a backward to the image; the update on the attacked image is a forward and both
    backwards, and on the clean image, where a term needs it, the same again. Embeddings of clean images by the teacher
    are computed once for all epochs and trials, and count 0; whatever else it computes counts.
    """
    settings = AttackConfig.model_validate(attack)
    own = METHODS[method["name"]].model_validate(method)
    guide, clean = _weights(own)
    found = {
        "teacher": 1.0 if own.needs_teacher and guide else 0.0,
        "attack": 2.0 * settings.steps * settings.restarts + (settings.restarts if settings.restarts > 1 else 0),
        "update": 3.0 + (0 if not clean else 1 if getattr(own, "detach_clean", False) else 3),
    }
    return {**found, "total": sum(found.values())}


def _weights(own: Objective) -> tuple[float, float]:
    """What the teacher's output weighs in the loss, where it is computed anew, and what the clean image's terms weigh.

    A term of weight 0 is not computed. TGA-ZSR's `weights` resolve its null for the paper's.
    """
    pair: tuple[float, float] | None = getattr(own, "weights", None)
    if pair:
        return sum(pair), pair[1]
    return getattr(own, "adversarial_weight", 1.0), getattr(own, "clean_weight", 0.0)


FOOLED_PASSES = 6
"""Passes of either kind that an attack spends on an image before it fools it.

2 to 10 on each of the tiny CLIP's three sets under PGD-20 and APGD (images computed and accuracies in
tests/bench/results/skipping-2-cores-2026-11-22.json). An attack that cannot skip inside a part, such as `autoattack`,
spends that part; beside what it spends on images that it does not fool, that is little.
"""

KINDS = ("forward", "backward")


@dataclass(frozen=True)
class Assumed:
    """Shares of images that are right without attack and under it, 0 <= robust <= clean <= 1: what skipping saves."""

    clean: float = 0.6
    robust: float = 0.4


def cost_of(suite: Suite, assumed: Assumed, rate: Rate | None) -> dict[str, Any]:
    """Passes of one model through the suite, as JSON values: `at_most` without any skipping, and `expected`.

    Expected, in protocol strict: an image that is wrong already is only looked at, one that is fooled takes
    FOOLED_PASSES, one that stays right takes all; the same shares at every radius. Sanity checks, the model that top-5
    overlap compares with (one look more at every image) and padding are not in it.
    """
    rows = [_row(name, entry, suite.protocol, assumed, rate) for name in suite.datasets for entry in suite.attacks]
    total = {name: {kind: sum(row[name][kind] for row in rows) for kind in KINDS} for name in ("at_most", "expected")}
    return {
        "suite": suite.name,
        "protocol": suite.protocol,
        "assumed": asdict(assumed),
        "rate": None if rate is None else asdict(rate),
        "rows": rows,
        "total": {**total, **_hours(total, rate)},
    }


def _row(name: str, entry: AttackAt, protocol: Protocol, assumed: Assumed, rate: Rate | None) -> dict[str, Any]:
    """Of an image: a look at it as it is; for every radius the attack, and a look at the worst image that it found."""
    planned, classes = units(name, entry), dataset_entry(name, "datasets").num_classes
    images = sum(unit.images for unit in planned)
    attacked = images * sum(eps > 0 for eps in entry.eps)
    attack = dict(zip(KINDS, entry.attack.passes(classes, norm=entry.norm), strict=True))
    robust, fooled, right = 1.0, 0.0, 1.0
    if protocol != "paper":
        robust, fooled, right = assumed.robust, assumed.clean - assumed.robust, assumed.clean
    most = {kind: attacked * attack[kind] for kind in KINDS}
    expected = {kind: round(attacked * (robust * attack[kind] + fooled * min(FOOLED_PASSES, attack[kind])))
                for kind in KINDS}  # fmt: skip
    most["forward"] += images + attacked
    expected["forward"] += images + round(attacked * right)
    found = {"at_most": most, "expected": expected}
    radii = [eps_label(eps) for eps in entry.eps]
    told = {"dataset": name, "attack": entry.label, "eps": radii, "images": images, "units": len(planned)}
    return {**told, **found, **_hours(found, rate)}


def _hours(found: Mapping[str, Mapping[str, float]], rate: Rate | None) -> dict[str, float]:
    if rate is None:
        return {}
    return {f"hours_{name}": rate.hours(passes) for name, passes in found.items()}


def study_passes(spec: StudyConfig) -> dict[str, int]:
    """Of a study at its file's own settings, at most; what is sampled, such as the attack's steps, changes them.

    Of several methods the dearest counts.

    `training` and `evaluations` of one full trial; `promotion`: the confirm sets for every candidate, the unmodified
    CLIP and a reigning champion, the final sets for the winner and the unmodified CLIP. An update's backward counts
    twice, to the image and to the weights (`compare_stats.passes`).
    """
    train = spec.train
    images = train.samples_per_epoch or dataset_entry(spec.data.train, "data.train").num_images
    attack = spec.attack.model_dump(mode="json")
    update = max(update_passes(block, attack)["total"] for block in spec.blocks().values())
    candidates = min(spec.promote.candidates, spec.budget.trials)
    final = spec.evaluate.final
    confirm = (candidates + 2) * _evaluation(spec.data.confirm, final)
    return {
        "training": round(train.epochs * images * update),
        "evaluations": train.epochs * _evaluation(spec.data.dev, spec.evaluate.select),
        "promotion": confirm + 2 * _evaluation(spec.data.final, final),
    }


def _evaluation(datasets: Sequence[str], config: Selection) -> int:
    """Of one model on these sets, at most."""
    suite = config.suite("study", datasets)
    return sum(cost_of(suite, Assumed(), None)["total"]["at_most"].values())


# What a suite costs, for a person: no line is wider than a terminal of 80 columns unless its names are.

WIDTH = 80
LEFT = 3  # columns that hold words


def cost_text(found: Mapping[str, Any], training: int | None = None) -> str:
    """`found` is what `cost_of` gives; `training`: passes of one full trial's training, to compare with."""
    lines = _said(
        f"suite {found['suite']}, protocol {found['protocol']}", "image passes of one model, forward and backward"
    )
    lines += _aligned(_cells(found))
    lines += _said("expected", _expectation(found))
    lines += _said("hours", _hours_text(found))
    if training is not None:
        ratio = sum(found["total"]["expected"].values()) / training
        lines += _said("training", f"one full trial of the study takes {short(training)} passes; this suite is "
                       f"expected to take {short(ratio)} times as many")  # fmt: skip
    return "\n".join(lines)


def _cells(found: Mapping[str, Any]) -> list[list[str]]:
    def numbers(row: Mapping[str, Any]) -> list[str]:
        passes = [short(sum(row[name].values())) for name in ("at_most", "expected")]
        return passes if found["rate"] is None else [*passes, f"{row['hours_expected']:.3g}"]

    titles = ["dataset", "attack", "radii", "images", "at most", "expected", "hours"]
    rows = [
        [row["dataset"], row["attack"], ", ".join(row["eps"]), f"{row['images']:,}", *numbers(row)]
        for row in found["rows"]
    ]
    total = ["all", "", "", "", *numbers(found["total"])]
    return [titles[: len(total)], *rows, total]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if column < LEFT else cell.rjust(width) for column, (cell, width) in pairs]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def _expectation(found: Mapping[str, Any]) -> str:
    if found["protocol"] == "paper":
        return "the same, as protocol paper skips nothing"
    clean, robust = (f"{100 * found['assumed'][name]:g} %" for name in ("clean", "robust"))
    return f"if {clean} of the images are right without attack and {robust} under it; the others are soon settled"


def _hours_text(found: Mapping[str, Any]) -> str:
    if found["rate"] is None:
        return "not known: passes x seconds a pass; see --measure, --seconds-per-pass and --tflops of agft plan"
    most = found["total"]["hours_at_most"]
    return f"of one such device, as expected (at most {most:.3g}); {found['rate']['basis']}"


def _said(word: str, text: str) -> list[str]:
    return textwrap.wrap(f"{word}: {text}", WIDTH, subsequent_indent="  ")


def short(passes: float) -> str:
    """Three digits: `1.28 M`."""
    value, units = float(passes), ["", " k", " M", " G"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:,.0f}{units[0]}" if value >= 999.5 else f"{value:.3g}{units[0]}"
