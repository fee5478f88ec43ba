"""What evaluating a suite costs, and what a study does: image passes through the encoder, and hours at a known rate.

A pass is one image forward, or one backward. Counted for one model; the text side (once a class) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from study.compare_stats import update_passes
from study.config import StudyConfig
from study.cost_rate import Rate
from study.evaluation_final import entries
from study.evaluation_plan import units
from trainers.config import EvalConfig
from trainers.data import dataset_entry
from trainers.suite import AttackAt, Protocol, Suite
from trainers.units import eps_label

__all__ = ["Assumed", "cost_of", "study_passes"]

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
    planned = units(name, entry)
    images = sum(unit.images for unit in planned)
    attacked = images * sum(eps > 0 for eps in entry.eps)
    attack = dict(zip(KINDS, entry.attack.passes(_num_classes(name), norm=entry.norm), strict=True))
    robust, fooled, right = 1.0, 0.0, 1.0
    if protocol == "strict":
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


def _num_classes(name: str) -> int:
    return dataset_entry(name, "datasets").num_classes


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


def _evaluation(datasets: Sequence[str], config: EvalConfig) -> int:
    """Of one model on these sets, at most."""
    suite = Suite(name="study", datasets=tuple(datasets), attacks=entries(config), protocol=config.protocol)
    return sum(cost_of(suite, Assumed(), None)["total"]["at_most"].values())
