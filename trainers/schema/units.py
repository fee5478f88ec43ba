"""Field types that every configuration shares. Imports no torch: a study file is checked in a moment."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def parse_fraction(value: Any) -> Any:
    """`"4/255"` as a float; numbers pass; other text is refused with the rule."""
    if not isinstance(value, str):
        return value
    numerator, slash, denominator = value.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is neither a number nor a fraction such as 4/255") from None


Fraction = Annotated[float, BeforeValidator(parse_fraction)]
Length = Annotated[Fraction, Field(gt=0, le=1)]


class Frozen(BaseModel):
    """A configuration record: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class OfEps(Frozen):
    """A length as a multiple of the attack's radius eps."""

    of_eps: float = Field(gt=0, le=4, description="multiple of eps")


class OfModel(Frozen):
    """A logit scale as a multiple of the model's own, exp(logit_scale)."""

    of_model: float = Field(gt=0, le=100, description="multiple of the model's own logit scale")


def eps_label(eps: float) -> str:
    """A stable name for a radius: `4/255`, `0.5/255`; the decimal where it is no such fraction of grey levels."""
    levels = round(eps * 255, 6)
    return f"{levels:g}/255" if abs(levels / 255 - eps) < 1e-8 and len(f"{levels:g}") <= 5 else repr(eps)
