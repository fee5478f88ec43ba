"""Our evaluation attacks against independent implementations, on the tiny CLIP: how many images stay right.

    .venv/bin/python -m pip install --no-deps --target DIR torchattacks==3.5.1 foolbox==3.3.4 eagerpy==0.30.0
    PYTHONPATH=DIR:. .venv/bin/python tests/bench/attack_agreement.py [--images 300] [--only NAME] [--seed 0]
    PYTHONPATH=DIR:. .venv/bin/python tests/bench/attack_agreement.py --expensive [--images 150]

Both sides get the same model, images, radius and settings; starts and other draws are their own, by `--seed`. Final
images decide, and an image that is wrong without attack is not robust. One Markdown row for each comparison: robust
counts, images on which the two disagree (theirs fooled only / ours fooled only), the p value of McNemar's exact test on
those, and whether each count lies in the other's 95 % Wilson interval. One thread.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import eagerpy
import foolbox
import pyautoattack
import torch
import torchattacks
from torch import Tensor, nn

from trainers.arithmetic import exact_math
from trainers.attacks import Case, Norm, run_attack
from trainers.attacks.losses import margin_loss
from trainers.data import load_dataset
from trainers.evaluation.record import wilson
from trainers.evaluation.verdicts import stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.schema.attacks import (  # fmt: skip
    APGD,
    APGDCE,
    APGDDLR,
    APGDT,
    CW,
    DIFGSM,
    FGSM,
    MIFGSM,
    PGD,
    TIFGSM,
    AutoAttack,
    Ensemble,
    EvalAttackParameters,
    Square,
)
from trainers.schema.training import ModelConfig

LINF, L2 = 2 / 255, 0.25
Theirs = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Classifier(nn.Module):
    """The tiny CLIP on one set's classes, images in [0, 1] -> logits; weights frozen."""

    def __init__(self, clip: nn.Module, classes: Tensor) -> None:
        super().__init__()
        self.model = RobustCLIP(clip).requires_grad_(False)
        self.register_buffer("classes", classes)

    def forward(self, images: Tensor, done: Tensor | None = None) -> Tensor:
        if done is None or not done.any():
            return self.model.logits(self.model.embed(images), self.classes, self.model.logit_scale)
        nothing = images.flatten(1)[:, :1] * torch.zeros(1, len(self.classes))
        return nothing.masked_scatter(~done[:, None], self(images[~done])) if not done.all() else nothing


class MarginPGD(foolbox.attacks.LinfProjectedGradientDescentAttack):
    """foolbox's PGD on the logit margin."""

    def get_loss_fn(self, model: Callable[..., object], labels: eagerpy.Tensor) -> Callable[..., eagerpy.Tensor]:
        return lambda x: eagerpy.astensor(margin_loss(model(x).raw, labels.raw, 0.0).sum())


def of_torchattacks(make: Callable[[nn.Module], torchattacks.attack.Attack]) -> Theirs:
    return lambda model, images, labels: make(model)(images, labels)


def one_by_one(theirs: Theirs) -> Theirs:
    """For attacks that draw once for the whole batch, where ours draw for every image."""
    return lambda model, images, labels: torch.cat(
        [theirs(model, x, y) for x, y in zip(images.split(1), labels.split(1), strict=True)]
    )


def remembered(theirs: Theirs) -> Theirs:
    """For an attack that two rows share."""
    found: list[Tensor] = []

    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if not found:
            found.append(theirs(model, images, labels))
        return found[0]

    return run


def of_foolbox(attack: foolbox.Attack, eps: float) -> Theirs:
    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=eps)[1]
        return found

    return run


def of_autoattack(
    parts: list[str], *, norm: str = "Linf", eps: float = LINF, targets: int = 9, queries: int = 0, seed: int = 0
) -> Theirs:
    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        package = pyautoattack.AutoAttack(model, attacks=parts, version="custom", norm=norm, eps=eps, seed=seed)
        package.apgd.n_restarts = package.fab.n_restarts = 1
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = targets
        if queries:
            package.square.n_queries, package.square.rescale_schedule = queries, True
        found: Tensor = package.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return found

    return run


class Comparison(NamedTuple):
    """One row: our settings, and somebody else's attack with the same ones."""

    what: str
    ours: EvalAttackParameters
    whose: str
    theirs: Theirs
    norm: Norm = "linf"
    expensive: bool = False


def comparisons(seed: int) -> tuple[Comparison, ...]:
    """All rows."""
    ta, fb, step, n = torchattacks, foolbox.attacks, LINF / 4, 20
    pgd, thin = {"alpha": step, "steps": n}, {"alpha": step, "steps": 10}
    apgd = {"norm": "Linf", "eps": LINF, "steps": 100, "n_restarts": 1, "loss": "ce"}
    package = functools.partial(of_autoattack, seed=seed)
    standard = remembered(package(["apgd-ce", "apgd-t", "fab-t", "square"]))
    singly = "torchattacks, image by image"
    return (
        Comparison("FGSM", FGSM(), "torchattacks", of_torchattacks(lambda m: ta.FGSM(m, eps=LINF))),
        Comparison("FGSM", FGSM(), "foolbox", of_foolbox(fb.LinfFastGradientAttack(), LINF)),
        Comparison("FGSM, l2", FGSM(), "foolbox", of_foolbox(fb.L2FastGradientAttack(), L2), "l2"),
        Comparison("PGD-20", PGD(), "torchattacks", of_torchattacks(lambda m: ta.PGD(m, eps=LINF, **pgd))),
        Comparison("PGD-20", PGD(), "foolbox", of_foolbox(fb.LinfPGD(rel_stepsize=0.25, steps=n), LINF)),
        Comparison("PGD-20, l2", PGD(), "torchattacks",
                   of_torchattacks(lambda m: ta.PGDL2(m, eps=L2, alpha=L2 / 4, steps=n)), "l2"),
        Comparison("PGD-20, l2", PGD(), "foolbox", of_foolbox(fb.L2PGD(rel_stepsize=0.25, steps=n), L2), "l2"),
        Comparison("C&W-20", CW(), "foolbox's PGD, the loss ours",
                   of_foolbox(MarginPGD(rel_stepsize=0.25, steps=n), LINF)),
        Comparison("MI-FGSM", MIFGSM(), "torchattacks", of_torchattacks(lambda m: ta.MIFGSM(m, eps=LINF, **thin))),
        Comparison("DI-FGSM", DIFGSM(), singly,
                   one_by_one(of_torchattacks(lambda m: ta.DIFGSM(m, eps=LINF, **thin)))),
        Comparison("TI-FGSM", TIFGSM(), singly,
                   one_by_one(of_torchattacks(lambda m: ta.TIFGSM(m, eps=LINF, **thin)))),
        Comparison("APGD-CE-100", APGDCE(), "pyautoattack", package(["apgd-ce"])),
        Comparison("APGD-CE-100", APGDCE(), "torchattacks", of_torchattacks(lambda m: ta.APGD(m, **apgd))),
        Comparison("APGD-CE-100, l2", APGDCE(), "pyautoattack", package(["apgd-ce"], norm="L2", eps=L2), "l2"),
        Comparison("APGD-DLR-100", APGDDLR(), "pyautoattack", package(["apgd-dlr"])),
        Comparison("APGD-DLR-100, l2", APGDDLR(), "pyautoattack", package(["apgd-dlr"], norm="L2", eps=L2), "l2"),
        Comparison("APGD-T-100, 3 targets", APGDT(targets=3), "pyautoattack", package(["apgd-t"], targets=3)),
        Comparison("APGD-T-100, 3 targets, l2", APGDT(targets=3), "pyautoattack",
                   package(["apgd-t"], targets=3, norm="L2", eps=L2), "l2"),
        Comparison("Square, 500 queries", Square(queries=500), "pyautoattack", package(["square"], queries=500)),
        Comparison("apgd", APGD(), "pyautoattack", package(["apgd-ce", "apgd-t"]), expensive=True),
        Comparison("ensemble", Ensemble(), "pyautoattack, standard", standard, expensive=True),
        Comparison("autoattack, wrapped", AutoAttack(), "pyautoattack, standard", standard, expensive=True),
    )  # fmt: skip


def mcnemar(one: int, other: int) -> float:
    """Two-sided exact p value of `one` against `other` disagreements."""
    n, k = one + other, min(one, other)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def compare(row: Comparison, model: Classifier, images: Tensor, labels: Tensor, index: Tensor, *, total: int,
            seed: int) -> str:  # fmt: skip
    """One line of the table. All `images` are right without attack; `total` counts those that are not as well."""
    eps, began = LINF if row.norm == "linf" else L2, time.perf_counter()
    # Attacks that keep their best image may leave out who is fooled; the others' last images are compared.
    keeps = row.ours.name.startswith(("apgd", "square", "ensemble"))
    case = Case(model, images, labels, index, eps, len(model.classes), row.norm, seed, skipping=keeps)
    found = [run_attack(case, row.ours).adversarial]
    half = time.perf_counter()
    found.append(row.theirs(model, images, labels).detach())
    seconds = f"{half - began:.0f} / {time.perf_counter() - half:.0f}"
    for adversarial in found:
        difference = (adversarial - images).flatten(1)
        size = difference.abs().amax(1) if row.norm == "linf" else difference.norm(dim=1)
        assert size.max() <= eps * 1.0001, (row.what, row.whose, size.max())
    with torch.no_grad():
        own, other = (model(adversarial).argmax(1) == labels for adversarial in found)
    counts = int(own.sum()), int(other.sum())
    bounds = [wilson(count, total) for count in counts]
    inside = all(low <= count / total <= high for count, (low, high) in zip(counts, bounds[::-1], strict=True))
    apart = int((own & ~other).sum()), int((~own & other).sum())
    return (
        f"| {row.what} | {row.whose} | {counts[0]} | {counts[1]} | {apart[0]} / {apart[1]} | {mcnemar(*apart):.2f} "
        f"| {'yes' if inside else 'NO'} | {seconds} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--set", default="tiny-digits", help="a dataset that the tiny CLIP can tell apart")
    parser.add_argument("--only", default="", help="comparisons whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="of both sides' draws; the images stay")
    parser.add_argument("--expensive", action="store_true", help="instead of the others: ensembles and AutoAttack")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    image_set = load_dataset(options.set, path="set")
    model = Classifier(clip, class_embeddings(clip, image_set.prompts(), tokenizer_for(clip))).eval()
    index = stratified_sample(image_set.labels, options.images, seed=0)
    images, labels = image_set.images[index].float() / 255, image_set.labels[index].long()
    with exact_math():
        right = model(images).argmax(1) == labels
        print(f"{options.set}: {len(index)} images, {int(right.sum())} right without attack, seed {options.seed}\n")
        print("| attack | against | ours | theirs | only theirs fools / only ours | p | within | seconds |")
        print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |", flush=True)
        for row in comparisons(options.seed):
            if options.only in row.what and row.expensive == options.expensive:
                torch.manual_seed(options.seed)  # the packages draw from the global state
                attacked = images[right], labels[right], index[right]
                print(compare(row, model, *attacked, total=len(index), seed=options.seed), flush=True)


if __name__ == "__main__":
    main()
