"""What a promoted version is: its manifest in S3, one record on the whole way from the promotion to whoever serves it.

A promotion knows a `Draft` of it. With a number, the weights' own place and the sums of all other files it is a
`Manifest`; what is read from S3 is checked against this format, and nothing older is read.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from infra.errors import ServiceError
from study.results.ranking import Measurement
from study.statistics import METRICS
from trainers.errors import nearest
from trainers.schema.records import Weights
from trainers.schema.suite import Suite
from trainers.schema.training import Metric
from trainers.schema.units import Frozen

CHAMPION = "champion"  # what the reigning champion is called among measured models
UNMODIFIED = "unmodified CLIP"  # what the study's CLIP before fine-tuning is called among measured models
SHOWN = 3  # mistakes in a message

Verdict = Literal["passed", "failed", "not applicable"]


def trial_label(number: int) -> str:
    """What a trial's checkpoint is called among measured models."""
    return f"trial {number}"


@dataclass(frozen=True)
class Gate:
    """One gate's verdict; `found` and `needed` are for people, `numbers` for machines."""

    name: str
    verdict: Verdict
    found: str
    needed: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Look(Frozen):
    """A comparison with a champion on the confirm sets, as counted (`study.models.looks`).

    `level`: what the look may spend of the model name's error budget. Each of its `hypotheses` is tested at `level` /
    `hypotheses`: that a checkpoint is better, for each that could have been chosen; that the champion is below a floor.
    """

    number: int = Field(ge=1)
    level: float = Field(gt=0, lt=1)
    hypotheses: int = Field(ge=1)

    @property
    def each(self) -> float:
        """The level of one bound, which holds for whichever checkpoint is chosen (Bonferroni)."""
        return self.level / self.hypotheses


class Tried(Frozen):
    """A candidate that was better on the confirm sets than the one that was decided about, and was refused."""

    trial: int
    reason: str
    gates: tuple[Gate, ...]


class SeedMean(Frozen):
    """Mean and deviation of a metric over seeds, and the mean's 95 % t interval, which one seed does not have."""

    mean: float
    deviation: float | None
    n: int
    low: float | None
    high: float | None


class Seeds(Frozen):
    """The winner's recipe, trained again: seed -> accuracies on the confirm sets, and what of it all was shipped."""

    asked: tuple[int, ...]
    measured: dict[int, dict[Metric, float]]
    summary: dict[Metric, SeedMean]
    shipped: str


Bins = tuple[tuple[float, float, float], ...]  # of confidence: images, mean confidence, accuracy


class SetCalibration(Frozen):
    """Of one set, as shipped and at the fitted temperature (`study.evaluation.calibration`)."""

    images: int
    accuracy: float
    confidence: float
    confidence_at_temperature: float
    calibration_error: float
    calibration_error_at_temperature: float
    bins: Bins
    bins_at_temperature: Bins


class Calibration(Frozen):
    """Of one model: means over the sets, and each of them."""

    temperature: float
    fitted_on: tuple[str, ...]
    calibration_error: float
    calibration_error_at_temperature: float
    datasets: dict[str, SetCalibration]


class Calibrations(Frozen):
    """Of the version, and of the unmodified CLIP."""

    model: Calibration
    unmodified: Calibration


class Draft(Frozen):
    """What a promotion knows of its winner before it is shipped. Roles are `confirm` and `final`."""

    model: str = Field(description="its name, which may have a champion")
    study: str
    study_key: str = Field(description="of the study's MLflow run")
    trial: int
    params: dict[str, Any] = Field(description="what the search chose")
    config: dict[str, Any] = Field(description="every setting of the training run")
    confirm: dict[str, Measurement] = Field(description="measured model -> accuracies on the confirm sets")
    final: dict[str, Measurement]
    final_accesses: int = Field(description="looks of the study at its final sets, this one included")
    measured_with: Suite = Field(description="on the final sets")
    evaluation: dict[str, str] = Field(description="role -> SHA-256 of everything that decides the verdicts")
    gates: tuple[Gate, ...]
    look: Look | None = Field(None, description="at the confirm sets, beside a champion; None: there was none")
    tried: tuple[Tried, ...] = Field((), description="better ones that a gate refused, the best first")
    forced: str | None = Field(description="why it was promoted against its gates")
    seeds: Seeds | None
    promotion: str = Field(description="its row in the study's database")
    champion_then: int | None = Field(description="the version that it was compared with")
    created_ms: int
    training: tuple[dict[str, Any], ...] = Field(description="every attempt's provenance and device-seconds")
    provenance: dict[str, Any] = Field(description="of the promotion")
    calibration: Calibrations | None = None
    inputs: dict[str, str] = Field({}, description="dataset -> SHA-256 of its content")
    audit: str | None = Field(None, description="whether the study's records followed from its file, and where not")

    @model_validator(mode="after")
    def _is_measured(self) -> Draft:
        for role, label in itertools.product(("confirm", "final"), (trial_label(self.trial), UNMODIFIED)):
            if not {*METRICS, "datasets"} <= self._measured(role).get(label, {}).keys():
                raise ValueError(f"{role}.{label}: its accuracies are missing")
        return self

    def own(self, role: str) -> Measurement:
        """The version's own measurement."""
        return self._measured(role)[trial_label(self.trial)]

    def unmodified(self, role: str) -> Measurement:
        """The unmodified CLIP's beside it."""
        return self._measured(role)[UNMODIFIED]

    def _measured(self, role: str) -> dict[str, Measurement]:
        return {"confirm": self.confirm, "final": self.final}[role]

    @property
    def failed_gates(self) -> list[str]:
        """Their names."""
        return [gate.name for gate in self.gates if gate.verdict == "failed"]


class Shipped(Weights):
    """The version's own copy."""

    bytes: int


class Manifest(Draft):
    """A promoted version, complete in S3."""

    format: Literal[1]
    version: int
    weights: Shipped
    source: Weights = Field(description="the checkpoint that was copied")
    files: dict[str, str] = Field({}, description="every other file -> SHA-256")

    @property
    def prefix(self) -> str:
        """The version's folder in S3, without a closing slash."""
        return self.weights.uri.rpartition("/")[0]

    @property
    def key(self) -> str:
        """What identifies the version in MLflow's registry: where it is, and its weights."""
        return f"{self.prefix}#{self.weights.sha256}"

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return self.model_dump(mode="json")


def parse_manifest(content: Any, address: str) -> Manifest:
    """What is stored at `address`; `ServiceError` with the fields that are wrong."""
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        mistakes = [_mistake(each) for each in error.errors()]
        more = f"; and {len(mistakes) - SHOWN} more" if len(mistakes) > SHOWN else ""
        raise ServiceError(f"{address}: no manifest of format 1: {'; '.join(mistakes[:SHOWN])}{more}") from None


def _mistake(detail: Any) -> str:
    path, rule = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
    if not path:
        return str(rule)
    if detail["type"] == "missing":
        return f"{path}: is missing"
    if detail["type"] == "extra_forbidden":
        close = nearest(str(detail["loc"][-1]), Manifest.model_fields, count=1)
        return f"{path}: no such field" + (f"; nearest: {close[0]}" if close else "")
    return f"{path} = {str(detail['input'])[:80]!r}: {rule}"
