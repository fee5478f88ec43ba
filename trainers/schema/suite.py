"""What an evaluation consists of: datasets, attacks with radii and sample sizes, a protocol. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainers.data import DATASETS, FOLDER_PREFIX, ZERO_SHOT_15, dataset_entry
from trainers.data.drawn.datasets import STATED_EPS, TINY_ROLES
from trainers.errors import UserError, lookup
from trainers.schema.attacks import EVAL_ATTACKS, EvalAttackParameters
from trainers.schema.named import OneOf
from trainers.schema.units import Fraction, Frozen, eps_label

Protocol = Literal["strict", "paper"]


class AttackAt(Frozen):
    """One attack of a suite: its settings, the radii, and on how many images of each set."""

    attack: Annotated[EvalAttackParameters, OneOf(EVAL_ATTACKS)] = Field(
        description="the attack and its settings, see docs/attacks.md"
    )
    norm: Literal["linf", "l2"] = Field(default="linf", description="norm of the ball around the image")
    eps: tuple[Annotated[Fraction, Field(ge=0, le=1000)], ...] = Field(
        default=(1 / 255,), min_length=1, description="radii in the norm, pixels in [0, 1]; each is judged alone"
    )
    samples: int | None = Field(
        default=None, ge=1, description="images of each set, class-stratified; null = all. The smaller sample is part "
        "of the larger one"
    )  # fmt: skip

    @model_validator(mode="after")
    def _radii(self) -> AttackAt:
        if self.norm == "linf" and max(self.eps) > 1:
            raise ValueError(f"eps {max(self.eps):g}: a linf radius is at most 1, pixels being in [0, 1]; write 4/255")
        if len(set(self.eps)) < len(self.eps):
            raise ValueError(f"eps: {', '.join(map(eps_label, self.eps))} has a radius twice")
        return self

    @property
    def label(self) -> str:
        """Its name in tables and files: `pgd-20`, `apgd-100-l2`."""
        return self.attack.label if self.norm == "linf" else f"{self.attack.label}-l2"


class Suite(Frozen):
    """Datasets and attacks that are reported together."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the suite")
    datasets: tuple[str, ...] = Field(min_length=1, description="names of `agft data list`, or folder:DIRECTORY")
    attacks: tuple[AttackAt, ...] = Field(min_length=1, description="attacks, each with radii and sample size")
    protocol: Protocol = Field(
        default="strict", description="strict: fooled if any iterate fools; paper: every image attacked, final iterate"
    )
    source: tuple[str, ...] = Field(
        default=(), description="sets like those that models are fine-tuned on: means are given with and without them"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of samples and attacks, one for all models")


def problems(suite: Suite) -> list[str]:
    """Everything that keeps the suite from being run, one line each with its path; nothing if it can be."""
    found = []
    for number, name in enumerate(suite.datasets):
        try:
            if not name.startswith(FOLDER_PREFIX):
                lookup(DATASETS, name, path=f"datasets.{number}")
        except UserError as error:
            found.append(str(error))
    for kind, names in (("datasets", suite.datasets), ("attacks", [entry.label for entry in suite.attacks])):
        found += [f"{kind}: {name!r} is there twice" for name in sorted({n for n in names if list(names).count(n) > 1})]
    found += [f"source: {name!r} is none of the datasets" for name in suite.source if name not in suite.datasets]
    for number, entry in enumerate(suite.attacks):
        for name in suite.datasets:
            classes = _num_classes(name)
            if classes is not None:
                found += _illegal(entry.attack, entry.norm, classes, f"attacks.{number}.attack", name)
    return list(dict.fromkeys(found))


def _num_classes(name: str) -> int | None:
    """None for what is unknown, and for a folder that is not on this machine."""
    try:
        return dataset_entry(name, "datasets").num_classes
    except UserError:
        return None


def _illegal(attack: EvalAttackParameters, norm: str, classes: int, path: str, dataset: str) -> list[str]:
    try:
        attack.check(norm=norm, num_classes=classes, path=path)
    except UserError as error:
        return [f"{error} (dataset {dataset})"]
    return []


def _attack(name: str, **settings: object) -> EvalAttackParameters:
    return EVAL_ATTACKS[name].model_validate(settings)


def _final(*eps: float, samples: int = 1000) -> tuple[AttackAt, ...]:
    """PGD-20 on every image, and APGD on a sample, with what each set's number of classes allows."""
    return (
        AttackAt(attack=_attack("pgd"), eps=eps),
        AttackAt(attack=_attack("apgd"), eps=eps, samples=samples),
    )


def _paper() -> tuple[AttackAt, ...]:
    """AGFT's own settings: 20 steps of 1/255; C&W; and what its code calls AutoAttack."""
    step = {"step_size": {"of_eps": 1}}
    return tuple(
        AttackAt(attack=attack, eps=(1 / 255,))
        for attack in (_attack("pgd", **step), _attack("cw", **step), _attack("aa-agft"))
    )


ROBUST_13 = (
    "cifar10", "cifar100", "stl10", "stanford-cars", "caltech101", "oxford-pets", "flowers102", "dtd", "eurosat",
    "fgvc-aircraft", "pcam", "imagenet-r", "imagenet-sketch",
)  # fmt: skip
SUITES: dict[str, tuple[Suite, str]] = {
    suite.name: (suite, text)
    for suite, text in (
        (
            Suite(name="zero-shot-15", datasets=ZERO_SHOT_15, attacks=_final(1 / 255), source=("imagenet",)),
            "the papers' fifteen sets: PGD-20 on every image, APGD-CE and APGD-T on 1,000 of each set",
        ),
        (
            Suite(name="zero-shot-15-paper", datasets=ZERO_SHOT_15, attacks=_paper(), protocol="paper",
                  source=("imagenet",)),
            "AGFT's tables 1, 2 and 4 as its code measures them",
        ),
        (
            Suite(name="zero-shot-13-apgd", datasets=ROBUST_13, source=("imagenet-r", "imagenet-sketch"), attacks=(
                AttackAt(attack=_attack("apgd"), eps=(2 / 255, 4 / 255), samples=1000),)),
            "RobustVLM's thirteen sets and radii; its sample is the first 1,000 images, ours is stratified",
        ),
        (
            Suite(name="tiny", datasets=TINY_ROLES["final"], attacks=_final(STATED_EPS, samples=100)),
            "the tiny CLIP's final sets at its stated radius, for trying things out on a bare machine",
        ),
    )
}  # fmt: skip
"""Suite and what it is, by name; `agft evaluate --suite` also takes a file."""
