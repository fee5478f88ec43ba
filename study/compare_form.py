"""Which form of a method a comparison ran: the paper's, or one with terms that the paper does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.space import shown
from trainers.objectives import METHODS

__all__ = ["form_lines", "form_name"]

Record = Mapping[str, Any]
SCALE = "logit_scale"
# The fields that make another form of a method than its paper's, and what that form is called. The fields' defaults
# are the paper's. Fields that are not here are its hyperparameters, or select a form that a paper has too.
FORMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "agft": ("AGFT with our optional terms", ("feature_weight", "label_weight", "clean_weight", "attack_on")),
    "pmg-aft": ("PMG-AFT, not as in the paper", ("detach_clean", "kl_reduction", "normalisation")),
    "tga-zsr": ("TGA-ZSR, not as in the paper", ("map_distance", "token_norm")),
    "fare": ("FARE with a term for the clean image", ("clean_weight",)),
}


def form_name(method: Record) -> str | None:
    """What a method's form is called where its search or its chosen trial left the paper's; None where neither did."""
    return FORMS[method["method"]][0] if _apart(method) else None


def _apart(method: Record) -> list[str]:
    """The fields in which a method's form is, or could have become, another than the paper's."""
    fields = FORMS.get(method["method"], ("", ()))[1]
    own = METHODS[method["method"]].model_validate(method["chosen"]["config"]["method"])
    found = []
    for field in fields:
        value, paper = getattr(own, field), type(own).model_fields[field].default
        text = f"the paper's {shown(field, value)}" if value == paper else shown(field, value)
        if f"method.{field}" in method["search"]["space"]:
            found.append(f"`{field}` searched, chosen {text}")
        elif value != paper:
            found.append(f"`{field}` {text}")
    return found


def form_lines(record: Record) -> list[str]:
    """Methods that are not in their paper's form, and which of them searched the scale that they train at."""
    lines = []
    for label, method in record["methods"].items():
        apart = _apart(method)
        if apart:
            lines.append(f"**{label} is {form_name(method)}**: {'; '.join(apart)}.")
    searched: list[str] = []
    fixed: list[str] = []
    without: list[str] = []
    for label, method in record["methods"].items():
        if SCALE not in METHODS[method["method"]].model_fields:
            without.append(label)
        else:
            (searched if f"method.{SCALE}" in method["search"]["space"] else fixed).append(label)
    groups = (("searched by", searched or ["none"]), ("held fixed by", fixed), ("not a field of", without))
    lines.append(f"`method.{SCALE}`: " + "; ".join(f"{what} {', '.join(who)}" for what, who in groups if who) + ".")
    return lines
