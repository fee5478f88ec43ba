"""What an evaluation consists of: datasets, attacks with radii and sample sizes, a protocol. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from trainers.data import FOLDER_PREFIX, ZERO_SHOT_15, dataset_entry
from trainers.data.corrupted.entries import USUAL
from trainers.data.corrupted.functions import CORRUPTIONS
from trainers.data.drawn.datasets import STATED_EPS, TINY_ROLES
from trainers.errors import UserError
from trainers.schema.attacks import EVAL_ATTACKS, EvalAttackParameters
from trainers.schema.named import OneOf
from trainers.schema.units import Fraction, Frozen, Several, eps_label, linf_length

Protocol = Literal["strict", "paper", "fast"]


class AttackAt(Frozen):
    """One attack of a suite: its settings, the radii, and on how many images of each set."""

    attack: Annotated[EvalAttackParameters, OneOf(EVAL_ATTACKS)] = Field(
        description="the attack and its settings, see docs/attacks.md"
    )
    norm: Literal["linf", "l2"] = Field(default="linf", description="norm of the ball around the image")
    eps: Several[Annotated[Fraction, Field(ge=0, le=1000)]] = Field(
        default=(1 / 255,), min_length=1, description="radii in the norm, pixels in [0, 1]; each is judged alone"
    )
    samples: int | None = Field(
        default=None, ge=1, description="images of each set, class-stratified; null = all. The smaller sample is part "
        "of the larger one"
    )  # fmt: skip

    @field_validator("eps", mode="after")
    @classmethod
    def _radii(cls, eps: tuple[float, ...], read: ValidationInfo) -> tuple[float, ...]:
        if read.data.get("norm") == "linf":
            linf_length(max(eps))
        if len(set(eps)) < len(eps):
            raise ValueError(f"{', '.join(map(eps_label, eps))} has a radius twice")
        return eps

    @property
    def label(self) -> str:
        """Its name in tables and files: `pgd-20`, `apgd-100-l2`."""
        return self.attack.label if self.norm == "linf" else f"{self.attack.label}-l2"


class Suite(Frozen):
    """Datasets and attacks that are reported together."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the suite")
    datasets: Several[str] = Field(min_length=1, description="names of `agft data list`, or folder:DIRECTORY")
    attacks: Several[AttackAt] = Field(min_length=1, description="attacks, each with radii and sample size")
    protocol: Protocol = Field(
        default="strict",
        description="strict: fooled if any iterate fools; paper: every image attacked, final iterate; fast: strict, "
        "searched in half precision and confirmed in fp32 (only a study's evaluate.select)",
    )
    source: Several[str] = Field(
        default=(), description="sets like those that models are fine-tuned on: means are given with and without them"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of samples and attacks, one for all models")


def problems(suite: Suite) -> list[str]:
    """Everything that keeps the suite from being run, one line each with its path; nothing if it can be."""
    found = []
    for number, name in enumerate(suite.datasets):
        try:
            if not name.startswith(FOLDER_PREFIX):
                dataset_entry(name, f"datasets.{number}")
        except UserError as error:
            found.append(str(error))
    for kind, names in (("datasets", suite.datasets), ("attacks", [entry.label for entry in suite.attacks])):
        found += [f"{kind}: {name!r} is there twice" for name in sorted({n for n in names if list(names).count(n) > 1})]
    found += [f"source: {name!r} is none of the datasets" for name in suite.source if name not in suite.datasets]
    if suite.protocol == "fast":
        found.append("protocol: fast is a search's own (evaluate.select): whom it misses is an estimate; write strict")
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


def _clean() -> tuple[AttackAt, ...]:
    """No attack: a radius of 0."""
    return (AttackAt(attack=_attack("fgsm"), eps=(0.0,), samples=1000),)


def _radii(samples: int = 1000) -> tuple[AttackAt, ...]:
    """APGD in both norms: the papers' radii in L-inf and twice their largest; RobustBench's 0.5 in L2, 1 and 2."""
    return (
        AttackAt(attack=_attack("apgd"), eps=(1 / 255, 2 / 255, 4 / 255, 8 / 255), samples=samples),
        AttackAt(attack=_attack("apgd"), norm="l2", eps=(0.5, 1.0, 2.0), samples=samples),
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
            Suite(name="imagenet-c", attacks=_clean(), datasets=tuple(
                f"imagenet-c:{corruption}/{severity}" for corruption in USUAL for severity in range(1, 6))),
            "ImageNet-C's fifteen corruptions at five severities, 1,000 images of each; nothing is attacked",
        ),
        (
            Suite(name="tiny-c", attacks=_clean(), datasets=tuple(
                f"corrupted:{corruption}/3:tiny-shapes" for corruption in CORRUPTIONS)),
            "twelve of its corruptions at severity 3, made of the tiny CLIP's shapes",
        ),
        (
            Suite(name="zero-shot-15-radii", datasets=ZERO_SHOT_15, source=("imagenet",), attacks=_radii()),
            "how far robustness reaches: APGD in L-inf up to 8/255 and in L2 up to 2, on 1,000 of each set",
        ),
        (
            Suite(name="tiny-radii", datasets=TINY_ROLES["final"], attacks=_radii(samples=100)),
            "the same radii on the tiny CLIP's final sets, 100 images of each",
        ),
        (
            Suite(name="tiny", datasets=TINY_ROLES["final"], attacks=_final(STATED_EPS, samples=100)),
            "the tiny CLIP's final sets at its stated radius, for trying things out on a bare machine",
        ),
    )
}  # fmt: skip
"""Suite and what it is, by name; `agft evaluate --suite` also takes a file."""
