"""The attacks that a model can be measured under: one row each, one way to run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from trainers.attacks.auto_pgd import apgd_ce_attack, apgd_dlr_attack, apgd_t_attack
from trainers.attacks.case import Case, Outcome
from trainers.attacks.composed import composed
from trainers.attacks.packaged import autoattack
from trainers.attacks.random_search import square_attack
from trainers.attacks.stepwise import cw_attack, fgsm_attack, pgd_attack
from trainers.attacks.transfer import transferred
from trainers.attacks.transferable import di_fgsm_attack, mi_fgsm_attack, ti_fgsm_attack
from trainers.errors import lookup
from trainers.schema.attacks import EVAL_ATTACK_PARAMETERS, EvalAttackParameters


@dataclass(frozen=True)
class EvalAttackRow:
    """One evaluation attack: its function, and its settings with their defaults, descriptions and limits."""

    function: Callable[[Case, Any], Outcome]
    parameters: type[EvalAttackParameters]

    @property
    def norms(self) -> tuple[str, ...]:
        return self.parameters.norms

    @property
    def min_classes(self) -> int:
        return self.parameters.min_classes

    @property
    def citation(self) -> str:
        return self.parameters.citation


def run_attack(case: Case, parameters: EvalAttackParameters) -> Outcome:
    """The attack that `parameters` name, on one batch.

    Refused: images that are not fp32 in [0, 1], a negative radius, a norm or a number of classes for which the attack
    is not defined, logits that are not finite. A radius of 0 is the identity. Weights' gradients, `.grad`, model mode
    and random state are left alone, and an image's result depends on the image, its index and the seed only (but for
    rows that say `keyed = False`).
    """
    row = lookup(EVAL_ATTACKS, parameters.name, path="attack.name")
    parameters.check(norm=case.norm, num_classes=case.num_classes)
    images = case.images
    if images.dtype != torch.float32 or images.ndim != 4:
        raise ValueError(f"images must be float32 [B, 3, H, W]; got {images.dtype} {tuple(images.shape)}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must be in [0, 1]; got {images.min():g} to {images.max():g}")
    if not case.eps >= 0:
        raise ValueError(f"eps {case.eps}: a radius is not negative")
    case = replace(case, images=images.detach())
    outcome = row.function(case, parameters) if case.eps > 0 else _untouched(case)
    finite = outcome.worst.margin.isfinite()
    if not (finite if case.done is None else finite | case.done).all():
        raise ValueError(f"attack {parameters.name!r}: the model's logits are not finite")
    return outcome


def _untouched(case: Case) -> Outcome:
    worst = case.worst()
    worst.look(case.clean(), case.images)
    return Outcome(case.images.clone(), worst)


_FUNCTIONS: Mapping[str, Callable[[Case, Any], Outcome]] = {
    "fgsm": fgsm_attack,
    "pgd": pgd_attack,
    "cw": cw_attack,
    "mi-fgsm": mi_fgsm_attack,
    "di-fgsm": di_fgsm_attack,
    "ti-fgsm": ti_fgsm_attack,
    "apgd-ce": apgd_ce_attack,
    "apgd-dlr": apgd_dlr_attack,
    "apgd-t": apgd_t_attack,
    "square": square_attack,
    "transfer": transferred(run_attack),
    "apgd": composed(run_attack),
    "ensemble": composed(run_attack),
    "aa-agft": composed(run_attack),
    "autoattack": autoattack,
}
EVAL_ATTACKS: Mapping[str, EvalAttackRow] = {
    name: EvalAttackRow(_FUNCTIONS[name], parameters) for name, parameters in EVAL_ATTACK_PARAMETERS.items()
}
