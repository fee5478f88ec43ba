"""What a study file says about promotion: candidates, fresh seeds, and the gates that a candidate must pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from trainers.schema.checks import CHECKS
from trainers.schema.named import In
from trainers.schema.training import CALIBRATIONS, AccuracyMetric, Metric
from trainers.schema.units import Frozen, listed
from trainers.table import Table, instance_rule

# Floors as people write them: `>= 0.55`, `>= clip - 0.06`, `>= clip * 0.8`.

FLOOR = re.compile(r"^>=\s*(?:(clip)\s*(?:([-+*])\s*)?)?((?:\d+(?:\.\d+)?|\.\d+)(?:e-?\d+)?)?$")


class Floor(Frozen):
    """`>= 0.55`, `>= clip - 0.06` or `>= clip * 0.8`, where clip is the unmodified model's accuracy."""

    of_clip: float = 0.0
    offset: float = 0.0

    def resolve(self, clip: float) -> float:
        """The number, in [0, 1] when reachable."""
        return self.of_clip * clip + self.offset


def parse_floor(text: str) -> Floor:
    """Read a constraint; `ValueError` names the rule."""
    match = FLOOR.match(text.strip()) if isinstance(text, str) else None
    clip, sign, number = match.groups() if match else (None, None, None)
    if match is None or (clip and bool(sign) != bool(number)) or (not clip and number is None):
        raise ValueError(f"{text!r} is not a floor; write '>= 0.55', '>= clip - 0.06' or '>= clip * 0.8'")
    value = float(number or 0)
    if not clip:
        floor = Floor(offset=value)
    elif sign == "*":
        floor = Floor(of_clip=value)
    else:
        floor = Floor(of_clip=1.0, offset=-value if sign == "-" else value)
    if floor.resolve(0.0) > 1 or (not clip and value > 1):
        raise ValueError(f"{text!r} can never be reached: accuracy is at most 1")
    return floor


def _check_floor(text: str) -> str:
    parse_floor(text)
    return text


FloorText = Annotated[str, AfterValidator(_check_floor)]

Share = Annotated[float, Field(ge=0, le=1)]
CheckName = Annotated[str, In(CHECKS)]
METRICS: dict[str, Metric] = {"robust": "robust_accuracy", "clean": "clean_accuracy"}
METRICS |= {name: name for name in (*METRICS.values(), *CALIBRATIONS)}
TEXT = re.compile(r"^max\s+(\w+)\s+with\s+(\w+)\s*(>=.*)$")


class Preference(Frozen):
    """What of a front is wanted: the largest weighted mean of the metrics among points that reach the floors.

    `rule`: the selection rule that it was read by.
    """

    weights: dict[Metric, float]
    floors: dict[Metric, str] = Field(default_factory=dict)
    rule: str = "weights"


Given = str | Mapping[str, float]


@dataclass(frozen=True)
class SelectionRule:
    """A row of SELECTION: which point of a front is wanted.

    `form`: how it is written in `promote.preference`, for messages; as text its first word is the rule's name, but for
    weights. `read(given)`: what is wanted, or `ValueError`; candidates and champion are compared by its weights above
    its floors. `scores(points)`: of the points of the front that reach the floors, each given as its accuracies, how
    much each is wanted; None: by the weights.
    """

    form: str
    read: Callable[[Given], Preference]
    scores: Callable[[Sequence[Mapping[Metric, float]]], Sequence[float]] | None = None


def _bounded(given: Given) -> Preference:
    match = TEXT.match(str(given).strip())
    if match is None:
        raise _no_preference(given)
    wanted, bounded, floor = match.groups()
    parse_floor(floor)
    if unknown := [name for name in (wanted, bounded) if name not in METRICS]:
        raise ValueError(f"{unknown[0]!r} is no metric; metrics: {', '.join(METRICS)}")
    return Preference(weights={METRICS[wanted]: 1.0}, floors={METRICS[bounded]: floor.strip()})


def _weighted(given: Given) -> Preference:
    pairs: Any = given
    if isinstance(given, str):
        parts = [part.partition("=") for part in given.split(",")]
        pairs = {name.strip(): number for name, _, number in parts}
    try:
        weights = {METRICS[name]: float(number) for name, number in pairs.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise _no_preference(given) from None
    if min(weights.values(), default=-1.0) < 0 or not sum(weights.values()):
        raise ValueError(f"{given!r}: weights are 0 or more, and one of them is more; {_forms()}")
    return Preference(weights=weights)


SELECTION: Table[SelectionRule] = Table(
    "selection rule",
    "agft.selection",
    {
        "weights": SelectionRule("weights such as robust=0.7,clean=0.3", _weighted),
        "max": SelectionRule("'max robust with clean >= clip - 0.05'", _bounded),
    },
    instance_rule(SelectionRule),
)


def _forms() -> str:
    return f"write {', or '.join(rule.form for rule in SELECTION.values())}"


def _no_preference(given: Given) -> ValueError:
    return ValueError(f"{given!r} is no preference; {_forms()}")


def parse_preference(given: Given) -> Preference:
    """Read weights, `max robust with clean >= clip - 0.05`, or what another rule reads; `ValueError` names the rule."""
    word = next(iter(given.split()), "") if isinstance(given, str) else ""
    rule = word if word in SELECTION else "weights"
    return SELECTION[rule].read(given).model_copy(update={"rule": rule})


def _check_preference(given: Any) -> Any:
    parse_preference(given)
    return given


PreferenceText = Annotated[str | dict[str, float], AfterValidator(_check_preference)]


class ImprovementGate(Frozen):
    """How much better than the champion a candidate must be, by the study's goal."""

    by: float = Field(0.0, ge=-1, le=1, description="the difference must be greater than this, points of 1")
    certain: bool = Field(
        True,
        description="the difference's bound must be, not only the difference measured; false: no evidence is asked",
    )


class SanityGate(Frozen):
    """The checks of the evaluation on itself (`docs/sanity.md`)."""

    samples: int = Field(200, ge=20, le=2000, description="images; with fewer, a check may fail for want of them")
    checks: Annotated[tuple[CheckName, ...], Field(min_length=1), BeforeValidator(listed)] | None = Field(
        None, description="their names; null: all"
    )


class GatesConfig(Frozen):
    """What a candidate must pass before it may be the champion. A policy file holds these keys."""

    floors: dict[Metric, FloorText] | None = Field(
        None, description="least accuracies, e.g. {clean_accuracy: '>= clip - 0.06'}; null: the goal's `subject_to`"
    )
    better_than_clip: bool = Field(True, description="the goal's value above the unmodified CLIP's")
    non_inferior: dict[AccuracyMetric, Share] = Field(
        default={"clean_accuracy": 0.05, "robust_accuracy": 0.03},
        description="margins: the one-sided bound on champion minus candidate, on the same images, stays below",
    )
    improvement: ImprovementGate | None = Field(
        default_factory=ImprovementGate, description="over the champion; null: not being inferior is enough"
    )
    max_seed_spread: dict[AccuracyMetric, Share] = Field(
        default_factory=dict, description="largest standard deviation over fresh seeds; needs `seeds: 2` or more"
    )
    provenance: bool = Field(True, description="code, packages, machine and inputs of every attempt are on record")
    clean_tree: bool = Field(False, description="training and promotion ran from committed code")
    sanity: SanityGate | None = Field(
        default_factory=SanityGate, description="the evaluation's checks on itself; null: not made"
    )
    final: bool = Field(
        True,
        description="the final sets may veto: for certain above the unmodified CLIP, not for certain below a floor",
    )


class PromoteConfig(Frozen):
    """How the champion is chosen."""

    candidates: int = Field(2, ge=1, description="top trials that are compared on the confirm sets")
    model_name: str = Field("robust-clip", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="registered model")
    preference: PreferenceText | None = Field(
        None, description="of a goal with several metrics: {robust: 0.7, clean: 0.3}, or 'max robust with clean >= 0.6'"
    )
    seeds: int = Field(0, ge=0, le=50, description="train the winner again with so many fresh seeds")
    ship: Literal["searched", "median"] = Field(
        "searched", description="the search's checkpoint, or the fresh seed whose value is the median"
    )
    gates: GatesConfig = Field(default_factory=GatesConfig, description="what a candidate must pass")

    @model_validator(mode="after")
    def _seeds_for_what_needs_them(self) -> PromoteConfig:
        if self.gates.max_seed_spread and self.seeds < 2:
            raise ValueError("gates.max_seed_spread: a spread needs seeds: 2 or more")
        if self.ship == "median" and self.seeds < 3:
            raise ValueError("ship: the median of fresh seeds needs seeds: 3 or more")
        return self
