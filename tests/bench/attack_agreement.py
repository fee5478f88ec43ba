"""Our evaluation attacks against independent implementations, on the tiny CLIP: how many images stay right.

    python -m pip install --no-deps --target DIR torchattacks==3.5.1 pyautoattack==0.2.0 foolbox==3.3.4 eagerpy==0.30.0
    PYTHONPATH=DIR nice -n 19 python tests/bench/attack_agreement.py [--images 150] [--only NAME]

Both sides get the same model, images, radius and settings; starts and other draws are their own. Final images decide,
and an image that is wrong without attack is not robust. One Markdown row for each comparison: robust counts, images
on which the two disagree (theirs fooled only / ours fooled only), the p value of McNemar's exact test on those, and
whether each count lies in the other's 95 % Wilson interval. One thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator

import eagerpy
import foolbox
import pyautoattack
import torch
import torchattacks
from torch import Tensor, nn

from trainers.attack_parameters import (
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
)  # fmt: skip
from trainers.attacks import Case, run_attack
from trainers.attacks.losses import margin_loss
from trainers.data import load_dataset
from trainers.model import ModelConfig, RobustCLIP, class_embeddings, exact_math, load_clip, tokenizer_for
from trainers.records import wilson
from trainers.verdicts import stratified_sample

LINF, L2 = 2 / 255, 0.25
Theirs = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Classifier(nn.Module):
    """The tiny CLIP on one set's classes, images in [0, 1] -> logits; weights frozen."""

    def __init__(self, clip: nn.Module, classes: Tensor) -> None:
        super().__init__()
        self.model = RobustCLIP(clip).requires_grad_(False)
        self.register_buffer("classes", classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(self.model.embed(images), self.classes, self.model.logit_scale)


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


def of_foolbox(attack: foolbox.Attack, eps: float) -> Theirs:
    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = attack(foolbox.PyTorchModel(model, bounds=(0, 1)), images, labels, epsilons=eps)[1]
        return found

    return run


def of_autoattack(
    parts: list[str], *, norm: str = "Linf", eps: float = LINF, targets: int = 9, queries: int = 0
) -> Theirs:
    def run(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        package = pyautoattack.AutoAttack(model, attacks=parts, version="custom", norm=norm, eps=eps, seed=0)
        package.apgd.n_restarts = package.fab.n_restarts = 1
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = targets
        if queries:
            package.square.n_queries, package.square.rescale_schedule = queries, True
        found: Tensor = package.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return found

    return run


def comparisons() -> Iterator[tuple[str, EvalAttackParameters, str, str, Theirs]]:
    """(what, ours, norm, whose, theirs)."""
    ta, fb, step, n = torchattacks, foolbox.attacks, LINF / 4, 20
    pgd, thin = {"alpha": step, "steps": n}, {"alpha": step, "steps": 10}
    yield "FGSM", FGSM(), "linf", "torchattacks", of_torchattacks(lambda m: ta.FGSM(m, eps=LINF))
    yield "FGSM", FGSM(), "linf", "foolbox", of_foolbox(fb.LinfFastGradientAttack(), LINF)
    yield "FGSM, l2", FGSM(), "l2", "foolbox", of_foolbox(fb.L2FastGradientAttack(), L2)
    yield "PGD-20", PGD(), "linf", "torchattacks", of_torchattacks(lambda m: ta.PGD(m, eps=LINF, **pgd))
    yield "PGD-20", PGD(), "linf", "foolbox", of_foolbox(fb.LinfPGD(rel_stepsize=0.25, steps=n), LINF)
    yield (
        "PGD-20, l2",
        PGD(),
        "l2",
        "torchattacks",
        of_torchattacks(lambda m: ta.PGDL2(m, eps=L2, alpha=L2 / 4, steps=n)),
    )
    yield "PGD-20, l2", PGD(), "l2", "foolbox", of_foolbox(fb.L2PGD(rel_stepsize=0.25, steps=n), L2)
    yield (
        "C&W-20, linf",
        CW(),
        "linf",
        "foolbox's PGD, the loss ours",
        of_foolbox(MarginPGD(rel_stepsize=0.25, steps=n), LINF),
    )
    yield "MI-FGSM", MIFGSM(), "linf", "torchattacks", of_torchattacks(lambda m: ta.MIFGSM(m, eps=LINF, **thin))
    yield (
        "DI-FGSM",
        DIFGSM(),
        "linf",
        "torchattacks, image by image",
        one_by_one(of_torchattacks(lambda m: ta.DIFGSM(m, eps=LINF, **thin))),
    )
    yield (
        "TI-FGSM",
        TIFGSM(),
        "linf",
        "torchattacks, image by image",
        one_by_one(of_torchattacks(lambda m: ta.TIFGSM(m, eps=LINF, **thin))),
    )
    yield "APGD-CE-100", APGDCE(), "linf", "pyautoattack", of_autoattack(["apgd-ce"])
    yield (
        "APGD-CE-100",
        APGDCE(),
        "linf",
        "torchattacks",
        of_torchattacks(lambda m: ta.APGD(m, norm="Linf", eps=LINF, steps=100, n_restarts=1, loss="ce")),
    )
    yield "APGD-CE-100, l2", APGDCE(), "l2", "pyautoattack", of_autoattack(["apgd-ce"], norm="L2", eps=L2)
    yield "APGD-DLR-100", APGDDLR(), "linf", "pyautoattack", of_autoattack(["apgd-dlr"])
    yield "APGD-DLR-100, l2", APGDDLR(), "l2", "pyautoattack", of_autoattack(["apgd-dlr"], norm="L2", eps=L2)
    yield "APGD-T-100, 3 targets", APGDT(targets=3), "linf", "pyautoattack", of_autoattack(["apgd-t"], targets=3)
    yield "Square, 500 queries", Square(queries=500), "linf", "pyautoattack", of_autoattack(["square"], queries=500)
    yield (
        "ensemble against AutoAttack",
        Ensemble(),
        "linf",
        "pyautoattack",
        of_autoattack(["apgd-ce", "apgd-t", "fab-t", "square"]),
    )
    yield (
        "autoattack, wrapped",
        AutoAttack(),
        "linf",
        "pyautoattack",
        of_autoattack(["apgd-ce", "apgd-t", "fab-t", "square"]),
    )


def mcnemar(one: int, other: int) -> float:
    """Two-sided exact p value of `one` against `other` disagreements."""
    n, k = one + other, min(one, other)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--set", default="tiny-digits", help="a dataset that the tiny CLIP can tell apart")
    parser.add_argument("--only", default="", help="comparisons whose name contains this")
    parser.add_argument("--expensive", action="store_true", help="also whole AutoAttack and the ensemble")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # the packages draw from the global state
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    image_set = load_dataset(options.set, path="set")
    classes = class_embeddings(clip, image_set.prompts(), tokenizer_for(clip))
    model = Classifier(clip, classes).eval()
    index = stratified_sample(image_set.labels, options.images, seed=0)
    images, labels = image_set.images[index].float() / 255, image_set.labels[index].long()
    with exact_math():
        clean = model(images).argmax(1) == labels
        right = int(clean.sum())
        print(f"{options.set}: {len(index)} images of {len(classes)} classes, {right} right without attack\n")
        print("| attack | against | ours | theirs | only theirs fools / only ours | p | within intervals | seconds |")
        print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |", flush=True)
        for what, ours, norm, whose, theirs in comparisons():
            expensive = what.startswith(("ensemble", "autoattack"))
            if options.only not in what or (expensive and not options.expensive):
                continue
            eps, began = LINF if norm == "linf" else L2, time.perf_counter()
            case = Case(model, images, labels, index, eps, len(classes), norm)  # type: ignore[arg-type]
            found = [run_attack(case, ours).adversarial]
            half = time.perf_counter()
            found.append(theirs(model, images, labels).detach())
            seconds = f"{half - began:.0f} / {time.perf_counter() - half:.0f}"
            for adversarial in found:
                difference = (adversarial - images).flatten(1)
                size = difference.abs().amax(1) if norm == "linf" else difference.norm(dim=1)
                assert size.max() <= eps * 1.0001, (what, whose, size.max())
            with torch.no_grad():
                own, other = (clean & (model(adversarial).argmax(1) == labels) for adversarial in found)
            counts, total = (int(own.sum()), int(other.sum())), len(index)
            bounds = [wilson(count, total) for count in counts]
            inside = all(low <= count / total <= high for count, (low, high) in zip(counts, bounds[::-1], strict=True))
            apart = int((own & ~other).sum()), int((~own & other).sum())
            print(
                f"| {what} | {whose} | {counts[0]} | {counts[1]} | {apart[0]} / {apart[1]} | {mcnemar(*apart):.2f} "
                f"| {'yes' if inside else 'NO'} | {seconds} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
