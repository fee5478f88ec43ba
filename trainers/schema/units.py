"""Field types that every configuration shares. Imports no torch: a study file is checked in a moment."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Item = TypeVar("Item")


def parse_fraction(value: Any) -> Any:
    """`"4/255"` as a float; numbers pass; other text is refused with the rule, and so is `true`, Python's 1."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is neither a number nor a fraction such as 4/255")
    if not isinstance(value, str):
        return value
    numerator, slash, denominator = value.partition("/")
    try:
        number = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not math.isfinite(number):
        shown = value if len(value) <= 40 else f"{value[:37]}..."
        raise ValueError(f"{shown!r} is neither a number nor a fraction such as 4/255")
    return number


def linf_length(value: float) -> float:
    """`value`, if it can be a length in the L-inf norm; `ValueError` with the rule if not."""
    if 0 <= value <= 1:
        return value
    counted = 1 < value <= 255 and (2 * value).is_integer()  # what people write who count grey levels: 4, 8, 0.5
    levels = f"; {value:g} of 255 grey levels is {value:g}/255" if counted else ""
    raise ValueError(f"{value:g} is no length in the L-inf norm: pixels are in [0, 1], so write 4/255 or so{levels}")


def listed(value: Any) -> Any:
    """A list of one, where its only item was written without brackets."""
    return value if value is None or isinstance(value, list | tuple) else [value]


Fraction = Annotated[float, BeforeValidator(parse_fraction), Field(json_schema_extra={"fraction": True})]
# Lengths in the L-inf norm: a radius, of which 0 is the image itself, and a step.
Radius = Annotated[Fraction, AfterValidator(linf_length), Field(json_schema_extra={"minimum": 0, "maximum": 1})]
Length = Annotated[Fraction, Field(gt=0, json_schema_extra={"maximum": 1}), AfterValidator(linf_length)]
# A list, of which a single item needs no brackets.
Several = Annotated[tuple[Item, ...], BeforeValidator(listed), Field(json_schema_extra={"alone": True})]


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
