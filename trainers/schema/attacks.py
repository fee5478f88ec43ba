"""What all evaluation attacks' settings have in common: where they are legal, what they cost, what they are called.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from trainers.errors import UserError
from trainers.schema.named import record_rule
from trainers.schema.units import Frozen, Length, OfEps
from trainers.table import Table, imported

LOSS_CLASSES: Mapping[str, int] = {"ce": 2, "margin": 2, "dlr": 3, "dlr-targeted": 4}
"""The least number of classes for which a loss is defined: DLR divides by z_(1) - z_(3), its targeted form needs z_(4).

With one class fewer DLR is a difference divided by itself, +1 or -1: no gradient, so no attack.
"""

Target = Literal["none", "random", "least-likely"]
Passes = tuple[int, int]
"""Forward and backward passes of one image."""

BUDGET = ("steps", "queries")  # settings that `label` always names: the first of them that an attack has


class EvalAttackParameters(Frozen):
    """The settings of one attack, with what is fixed about it."""

    norms: ClassVar[tuple[Literal["linf", "l2"], ...]] = ("linf",)
    min_classes: ClassVar[int] = 2
    gradients: ClassVar[bool] = True  # does it ask for the model's gradients?
    keyed: ClassVar[bool] = True  # does an image's result depend on nothing but the image, its index and the seed?
    summary: ClassVar[str]
    citation: ClassVar[str]
    function: ClassVar[str] = ""  # `module:object` of what `run` calls, unless the class says itself how it is run

    name: str

    def run(self, case: Any) -> Any:
        """The attack on a `trainers.attacks.Case`, an `Outcome`; called by `trainers.attacks.run_attack` alone."""
        return imported(self.function)(case, self)

    def check(self, *, norm: str, num_classes: int, path: str = "attack") -> None:
        """Raise a `UserError` if the attack is not defined for this norm or so few classes."""

        if norm not in self.norms:
            rule = f"{self.name!r} is defined in {' and '.join(self.norms)}, not in {norm}"
            raise UserError(f"{path}.name: {rule}; in {norm}: {', '.join(legal_attacks(num_classes, norm))}")
        if num_classes < self.min_classes:
            losses, attacks = ", ".join(legal_losses(num_classes)), ", ".join(legal_attacks(num_classes, norm))
            legal = f"with {num_classes}, legal losses: {losses}; legal attacks: {attacks}"
            rule = f"{self.name!r} needs at least {self.min_classes} classes, and here there are {num_classes}"
            raise UserError(f"{path}.name: {rule}; {legal if losses else 'an attack needs at least 2'}")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        """What one image costs that is never fooled: the most that it can.

        Here, of an ascent: every iterate is looked at, with a gradient at all but the last; to find the least likely
        class, the image itself. Other attacks say what they cost.
        """
        steps, restarts = getattr(self, "steps", 1), getattr(self, "restarts", 1)
        return restarts * (steps + 1) + (getattr(self, "target", "none") == "least-likely"), restarts * steps

    @property
    def label(self) -> str:
        """A name for tables and files, of a-z, 0-9 and `-`: two that differ in any setting differ in it.

        The attack, its steps (`pgd-20`; with 5 restarts `pgd-20x5`), and whatever is not the default: `pgd-20-random`
        for a target, setting and value for others, such as `cw-20-confidence-0p5` or `pgd-20-step-size-1eps`.
        """
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in fields if name != "name"}
        words = [self.name]
        if budget := next((name for name in BUDGET if name in values), None):
            restarts = values.pop("restarts", 1)
            words.append(f"{values.pop(budget)}" + (f"x{restarts}" if restarts > 1 else ""))
        for name, value in values.items():
            if value != fields[name].default:
                words.append(_word(value) if name == "target" else f"{name.replace('_', '-')}-{_word(value)}")
        return "-".join(words)

    def resolved_step_size(self, eps: float) -> float:
        """`step_size` in pixels of [0, 1], for attacks that have one."""
        size: float | OfEps = getattr(self, "step_size")  # noqa: B009
        return size.of_eps * eps if isinstance(size, OfEps) else size


class Composed(EvalAttackParameters):
    """The settings of an attack that is made of others."""

    function = "trainers.attacks.composed:composed"

    def components(self, *, norm: str, num_classes: int) -> tuple[EvalAttackParameters, ...]:
        """What runs, in this order."""
        raise NotImplementedError

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        costs = [part.passes(num_classes, norm=norm) for part in self.components(norm=norm, num_classes=num_classes)]
        return sum(forward for forward, _ in costs), sum(backward for _, backward in costs)


def _word(value: Any) -> str:
    """A setting's value in a-z, 0-9 and `-`: 0.5 is `0p5`, 1e-05 is `1em05`, {of_eps: 0.5} is `0p5eps`."""
    if isinstance(value, OfEps):
        return f"{_word(value.of_eps)}eps"
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace(".", "p").replace("-", "m").replace("+", "")
    return str(value).lower()


def legal_losses(num_classes: int) -> tuple[str, ...]:
    """Losses that are defined for so many classes."""
    return tuple(name for name, least in LOSS_CLASSES.items() if num_classes >= least)


# What every evaluation attack can be told, where it is legal, and whose idea it is. Imports no torch.
#
# One class an attack, which says what runs it (`function`), and one row in EVAL_ATTACKS.
# Defaults: mi-, di- and ti-fgsm those of torchattacks 3.5.1 (whose step of 2/255 inside 8/255 is eps / 4); APGD,
# Square and their ensembles those of AutoAttack; pgd and cw 20 steps, as in AGFT (Cui et al. 2026), but of eps / 4:
# steps of eps are weak against the last percent.

TARGET = "what to aim at: none (away from the label), random (a wrong class drawn for the image), least-likely"
STEP = "step in the attack's norm, absolute or a multiple of eps"


def legal_attacks(num_classes: int, norm: str = "linf") -> tuple[str, ...]:
    """Attacks that are defined for so many classes, in this norm."""
    rows = EVAL_ATTACKS.items()
    return tuple(name for name, row in rows if norm in row.norms and num_classes >= row.min_classes)


class FGSM(EvalAttackParameters):
    norms = ("linf", "l2")
    summary = "one step of eps along the gradient's sign (l2: along the gradient), from the image"
    citation = "Goodfellow et al., ICLR 2015, arXiv:1412.6572"
    function = "trainers.attacks.stepwise:fgsm_attack"
    name: Literal["fgsm"] = "fgsm"
    target: Target = Field(default="none", description=TARGET)


class PGD(EvalAttackParameters):
    norms = ("linf", "l2")
    summary = "projected gradient ascent on the cross-entropy from random starts"
    citation = "Madry et al., ICLR 2018, arXiv:1706.06083"
    function = "trainers.attacks.stepwise:pgd_attack"
    name: Literal["pgd"] = "pgd"
    steps: int = Field(default=20, ge=0, le=10000, description="steps of each restart")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=0.25), description=STEP)
    restarts: int = Field(default=1, ge=1, le=1000, description="random starts")
    random_start: bool = Field(default=True, description="start at a random point of the ball, not at the image")
    target: Target = Field(default="none", description=TARGET)


class CW(EvalAttackParameters):
    summary = "PGD on the logit margin, label less the largest wrong class"
    citation = "Carlini and Wagner, IEEE S&P 2017, arXiv:1608.04644; in L-inf as in Madry et al. 2018, section 5"
    function = "trainers.attacks.stepwise:cw_attack"
    name: Literal["cw"] = "cw"
    steps: int = Field(default=20, ge=0, le=10000, description="steps of each restart")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=0.25), description=STEP)
    restarts: int = Field(default=1, ge=1, le=1000, description="random starts")
    confidence: float = Field(default=0.0, ge=0, description="kappa: push to a margin of -kappa logits, no farther")


class _Iterative(EvalAttackParameters):
    steps: int = Field(default=10, ge=0, le=10000, description="number of steps")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=0.25), description=STEP)
    target: Target = Field(default="none", description=TARGET)


class MIFGSM(_Iterative):
    summary = "iterated FGSM with an accumulated gradient (momentum), made to transfer"
    citation = "Dong et al., CVPR 2018, arXiv:1710.06081"
    function = "trainers.attacks.transferable:mi_fgsm_attack"
    name: Literal["mi-fgsm"] = "mi-fgsm"
    decay: float = Field(default=1.0, ge=0, le=10, description="how much of the accumulated gradient stays")


class _Diverse(_Iterative):
    decay: float = Field(default=0.0, ge=0, le=10, description="how much of the accumulated gradient stays")
    resize_rate: float = Field(default=0.9, gt=0, lt=1, description="smallest size that the image is shrunk to")
    diversity_probability: float = Field(default=0.5, ge=0, le=1, description="how often a step shrinks the image")


class DIFGSM(_Diverse):
    summary = "iterated FGSM whose every step sees the image shrunk and padded at random, made to transfer"
    citation = "Xie et al., CVPR 2019, arXiv:1803.06978"
    function = "trainers.attacks.transferable:di_fgsm_attack"
    name: Literal["di-fgsm"] = "di-fgsm"


class TIFGSM(_Diverse):
    summary = "DI-FGSM whose gradient is smoothed by a Gaussian (shifts of the image), made to transfer"
    citation = "Dong et al., CVPR 2019, arXiv:1904.02884"
    function = "trainers.attacks.transferable:ti_fgsm_attack"
    name: Literal["ti-fgsm"] = "ti-fgsm"
    kernel_size: int = Field(default=15, ge=1, le=99, description="side of the kernel, pixels")
    kernel_sigmas: float = Field(default=3.0, gt=0, description="standard deviations from its centre to its edge")


class _AutoPGD(EvalAttackParameters):
    norms = ("linf", "l2")
    citation = "Croce and Hein, ICML 2020, arXiv:2003.01690"
    steps: int = Field(default=100, ge=1, le=10000, description="steps of each restart (apgd-t: and of each target)")
    restarts: int = Field(default=1, ge=1, le=1000, description="random starts")
    rho: float = Field(default=0.75, gt=0, lt=1, description="share of steps that must raise the loss, else halve them")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        runs = self.restarts * (self.steps + 1)
        return runs, runs


class APGDCE(_AutoPGD):
    summary = "Auto-PGD on the cross-entropy: steps halve, image by image, when progress stops"
    function = "trainers.attacks.auto_pgd:apgd_ce_attack"
    name: Literal["apgd-ce"] = "apgd-ce"


class APGDDLR(_AutoPGD):
    min_classes = LOSS_CLASSES["dlr"]
    summary = "Auto-PGD on the difference of logits ratio, which a larger logit scale does not change"
    function = "trainers.attacks.auto_pgd:apgd_dlr_attack"
    name: Literal["apgd-dlr"] = "apgd-dlr"


class APGDT(_AutoPGD):
    min_classes = LOSS_CLASSES["dlr-targeted"]
    summary = "Auto-PGD on the targeted difference of logits ratio, to each of the likeliest wrong classes in turn"
    function = "trainers.attacks.auto_pgd:apgd_t_attack"
    name: Literal["apgd-t"] = "apgd-t"
    targets: int = Field(default=9, ge=1, le=1000, description="how many classes are aimed at; at most all wrong ones")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        runs = super().passes(num_classes)[0] * min(self.targets, num_classes - 1)
        return 1 + runs, runs  # the classes are ranked by a forward of the image itself


class Square(EvalAttackParameters):
    gradients = False
    summary = "random search over squares of +-eps; asks for no gradient, so it sees through masked ones"
    citation = "Andriushchenko et al., ECCV 2020, arXiv:1912.00049"
    function = "trainers.attacks.random_search:square_attack"
    name: Literal["square"] = "square"
    queries: int = Field(default=5000, ge=1, le=1000000, description="forward passes of each image")
    p_init: float = Field(default=0.8, gt=0, le=1, description="share of the pixels in the first square")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        return self.queries, 0


class Transfer(EvalAttackParameters):
    norms = ("linf", "l2")
    summary = "the perturbation that another attack finds on a surrogate model, shown to this one"
    citation = "Papernot et al., 2016, arXiv:1605.07277"
    function = "trainers.attacks.transfer:transferred"
    name: Literal["transfer"] = "transfer"
    attack: str = Field(default="pgd", description="the attack on the surrogate, a name of this table")
    settings: dict[str, Any] = Field(default_factory=dict, description="that attack's parameters")

    def inner(self, path: str = "attack") -> EvalAttackParameters:
        """The attack on the surrogate."""
        if self.attack == self.name or self.attack not in EVAL_ATTACKS:
            known = ", ".join(name for name in EVAL_ATTACKS if name != self.name)
            raise UserError(f"{path}.attack: {self.attack!r} cannot run on a surrogate; known: {known}")
        return EVAL_ATTACKS[self.attack].model_validate(self.settings)

    def check(self, *, norm: str, num_classes: int, path: str = "attack") -> None:
        super().check(norm=norm, num_classes=num_classes, path=path)
        self.inner(path).check(norm=norm, num_classes=num_classes, path=f"{path}.attack")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        """Those of the surrogate among them."""
        forward, backward = self.inner().passes(num_classes, norm=norm)
        return forward + 1, backward

    @property
    def label(self) -> str:
        return f"{self.name}-{self.inner().label}"


class APGD(Composed):
    norms = ("linf", "l2")
    summary = "apgd-ce, then apgd-t (3 classes: apgd-dlr; 2: neither), on who is not fooled yet"
    citation = (
        "Schlarmann et al., ICML 2024, arXiv:2402.12336 (chs20/RobustVLM at d257a53, zeroshot_classification.py, which "
        "runs apgd-t with 3 classes too, where it is not defined)"
    )
    name: Literal["apgd"] = "apgd"
    steps: int = Field(default=100, ge=1, le=10000, description="steps of each APGD")
    targets: int = Field(default=9, ge=1, le=1000, description="classes that apgd-t aims at")

    def components(self, *, norm: str, num_classes: int) -> tuple[EvalAttackParameters, ...]:
        parts: tuple[EvalAttackParameters, ...] = (APGDCE(steps=self.steps),)
        if num_classes >= APGDT.min_classes:
            return (*parts, APGDT(steps=self.steps, targets=self.targets))
        return (*parts, APGDDLR(steps=self.steps)) if num_classes >= APGDDLR.min_classes else parts


class Ensemble(Composed):
    norms = ("linf", "l2")
    summary = "apgd-ce, then apgd-t (3 classes: apgd-dlr; 2: neither), then square (linf), on who is not fooled yet"
    citation = "after Croce and Hein, ICML 2020; this is not AutoAttack: it has no FAB-T, and its parts are our own"
    name: Literal["ensemble"] = "ensemble"
    steps: int = Field(default=100, ge=1, le=10000, description="steps of each APGD")
    targets: int = Field(default=9, ge=1, le=1000, description="classes that apgd-t aims at")
    queries: int = Field(default=5000, ge=1, le=1000000, description="forward passes of square")

    def components(self, *, norm: str, num_classes: int) -> tuple[EvalAttackParameters, ...]:
        parts = APGD(steps=self.steps, targets=self.targets).components(norm=norm, num_classes=num_classes)
        return (*parts, Square(queries=self.queries)) if norm in Square.norms else parts


class AAAgft(Composed):
    summary = "what the official AGFT code calls AutoAttack: apgd-ce and apgd-dlr (from 3 classes), 10 steps; weak"
    citation = (
        "YuboCui/AGFT at 0031a8f, utils.py:94. Its 20 draws for expectation over transformation are left out: on a "
        "deterministic model they are 20 equal gradients"
    )
    name: Literal["aa-agft"] = "aa-agft"
    steps: int = Field(default=10, ge=1, le=10000, description="steps of each APGD")

    def components(self, *, norm: str, num_classes: int) -> tuple[EvalAttackParameters, ...]:
        parts: tuple[EvalAttackParameters, ...] = (APGDCE(steps=self.steps), APGDDLR(steps=self.steps))
        return tuple(part for part in parts if num_classes >= part.min_classes)


class AutoAttack(EvalAttackParameters):
    norms = ("linf", "l2")
    keyed = False
    summary = "AutoAttack `standard` of the package pyautoattack, with the parts that so few classes allow"
    citation = "Croce and Hein, ICML 2020, arXiv:2003.01690; package pyautoattack"
    function = "trainers.attacks.packaged:autoattack"
    name: Literal["autoattack"] = "autoattack"
    targets: ClassVar[int] = 9  # of `standard`

    def parts(self, num_classes: int) -> tuple[str, ...]:
        """The package's names of what runs; targets are 9, or all wrong classes."""
        targeted = {2: (), 3: ("apgd-dlr",)}.get(num_classes, ("apgd-t",))
        return ("apgd-ce", *targeted, "fab-t", "square")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        """The most that its budgets allow: 100 steps in each run of APGD and of FAB-T, 5000 queries of square."""
        fab = min(self.targets, num_classes - 1)
        apgd = 1 + {2: 0, 3: 1}.get(num_classes, fab)
        others = 20  # its checks of the model, and a look at what every part starts from and finds
        return 102 * apgd + 203 * fab + 5000 + others, 101 * apgd + 100 * fab


ADAPTIVE = {"eot-pgd": "EOTPGD", "spsa": "SPSA", "adaptive": "Adaptive"}
EVAL_ATTACKS: Table[type[EvalAttackParameters]] = Table(
    "attack",
    "agft.attacks",
    {
        row.model_fields["name"].default: row
        for row in (
            FGSM, PGD, CW, MIFGSM, DIFGSM, TIFGSM, APGDCE, APGDDLR, APGDT, Square, Transfer, APGD, Ensemble, AAAgft,
            AutoAttack,
        )
    }
    | {name: f"trainers.schema.adaptive:{place}" for name, place in ADAPTIVE.items()},
    record_rule(EvalAttackParameters),
)  # fmt: skip
