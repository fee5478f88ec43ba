"""How good and how fragile the tiny CLIP is: clean, noisy and attacked zero-shot accuracy on all of its sets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from trainers.data import dataset_entry, load_dataset
from trainers.data.drawn.datasets import STATED_EPS, TINY_ROLES
from trainers.data.drawn.wide import WIDE_ROLES
from trainers.evaluation.measure import evaluate_sets, random_noise
from trainers.model.build import tokenizer_for
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.schema.attacks import PGD
from trainers.schema.suite import AttackAt, Suite

RADII = (2 / 255, 4 / 255, 6 / 255, 8 / 255)
BEDS = {"tiny-wide": WIDE_ROLES, "tiny-color-shapes": TINY_ROLES}  # by the set to fine-tune on
ROLES = ("train", "dev", "confirm", "final")
TRAIN_SAMPLES = 1200  # images of a set to fine-tune on that are measured
EVERY = tuple(dict.fromkeys(name for roles in BEDS.values() for role in ROLES for name in roles[role]))
ZERO_SHOT = tuple(name for name in EVERY if name not in BEDS)


@dataclass(frozen=True)
class Row:
    """Counts of right answers on one set; `noisy`: every pixel moved by + or - STATED_EPS, at random."""

    name: str
    num_classes: int
    total: int
    clean: int
    noisy: int
    robust: dict[float, int]


def measure(clip: nn.Module, name: str, *, radii: Sequence[float] = RADII, samples: int | None = None) -> Row:
    """Counts on one set, by the strict protocol: PGD with 10 steps of eps / 4, fooled if any iterate fools."""
    attack = AttackAt(attack=PGD(steps=10), eps=tuple(radii), samples=samples)
    strict = Suite(name="strict", datasets=(name,), attacks=(attack,))
    noise = strict.model_copy(update={"attacks": (attack.model_copy(update={"eps": (STATED_EPS,)}),)})
    data = load_dataset(name)
    result = evaluate_sets(clip, strict)[name]
    targets = class_embeddings(clip, data.prompts(), tokenizer_for(clip))
    noisy = random_noise(RobustCLIP(clip), data, targets, noise)
    robust = dict(zip(radii, result.robust_correct, strict=True))
    return Row(name, len(data.classes), result.n, result.clean_correct, noisy.robust_correct[0], robust)


def measure_all(clip: nn.Module, *, radii: Sequence[float] = RADII, samples: int | None = None) -> list[Row]:
    """All sets, with a line of progress for each."""
    rows, began = [], time.perf_counter()
    for number, name in enumerate(EVERY, start=1):
        rows.append(measure(clip, name, radii=radii, samples=samples or (TRAIN_SAMPLES if name in BEDS else None)))
        seconds = time.perf_counter() - began
        left = seconds / number * (len(EVERY) - number)
        print(f"measured {name} ({number}/{len(EVERY)})  {seconds:.0f} s, {left:.0f} s left", flush=True)
    return rows


def format_tables(rows: Iterable[Row]) -> str:
    """A Markdown table of percentages for each bed; its last line is the mean over the sets that are not trained on."""
    found = {row.name: row for row in rows}
    return "\n\n".join(_table(roles, found) for roles in BEDS.values())


def _table(bed: Mapping[str, Sequence[str]], found: Mapping[str, Row]) -> str:
    rows = [(role, found[name]) for role in ROLES for name in bed[role]]
    attacks = [f"PGD {_ratio(eps)}" for eps in rows[0][1].robust]
    heads = ["set", "role", "classes", "n", "clean", f"noise {_ratio(STATED_EPS)}", *attacks]
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2)]
    shares, total = [], 0
    for role, row in rows:
        values = [100 * count / row.total for count in (row.clean, row.noisy, *row.robust.values())]
        if role != "train":
            shares.append(values)
            total += row.total
        held_out = len(dataset_entry(row.name, "set").held_out)
        classes = f"{held_out} of {row.num_classes}" if held_out else str(row.num_classes)
        lines.append([row.name, role, classes, str(row.total), *(f"{value:.1f}" for value in values)])
    means = [sum(column) / len(shares) for column in zip(*shares, strict=True)]
    lines.append(["mean, not trained on", "", "", str(total), *(f"{value:.1f}" for value in means)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ratio(eps: float) -> str:
    return f"{round(eps * 255)}/255"
