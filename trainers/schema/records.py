"""What a run reports after every epoch, and which epoch is the best. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BeforeValidator, Field

from trainers.schema.training import Goal
from trainers.schema.units import Frozen

GAP_UNIT = 1 << 40  # fp32 confidences down to 1 / 131,072 are whole numbers of 1 / GAP_UNIT


class Score(Frozen):
    """One dataset under one attack radius: integer counts over all ranks, and their ratios."""

    clean_accuracy: float = Field(ge=0, le=1, description="correct / total")
    robust_accuracy: float = Field(ge=0, le=1, description="robust / total")
    correct: int = Field(ge=0, description="images classified right without attack")
    robust: int = Field(ge=0, description="images classified right under the attack")
    total: int = Field(ge=1, description="images evaluated")
    bias: tuple[float, float, float] | None = Field(
        default=None,
        description="protocol fast: by how much robust_accuracy is above the strict protocol's, measured on a sample: "
        "estimate, and the ends of a 95 % interval",
    )
    clean_gap: int | None = Field(
        default=None, ge=0, description="calibration without attack: over 15 bins of the confidence, the sum of |right "
        "images - sum of their confidences|, in units of 2^-40; null: not measured",
    )  # fmt: skip
    robust_gap: int | None = Field(default=None, ge=0, description="the same under the attack")

    @classmethod
    def of(
        cls, *, correct: int, robust: int, total: int, bias: tuple[float, float, float] | None = None,
        gaps: tuple[int, int] | None = None,
    ) -> Score:  # fmt: skip
        """From the counts; `gaps`: of the calibration without attack and under it."""
        counts = {"correct": correct, "robust": robust, "total": total}
        clean, attacked = gaps or (None, None)
        return cls(clean_accuracy=correct / total, robust_accuracy=robust / total, **counts, bias=bias,
                   clean_gap=clean, robust_gap=attacked)  # fmt: skip

    @property
    def clean_calibration(self) -> float | None:
        """1 - expected calibration error without attack; None where it was not measured."""
        return self._less(self.clean_gap)

    @property
    def robust_calibration(self) -> float | None:
        """1 - expected calibration error under the attack; None where it was not measured."""
        return self._less(self.robust_gap)

    def _less(self, gap: int | None) -> float | None:
        """1 less this share, rounded once."""
        whole = self.total * GAP_UNIT
        return None if gap is None else (whole - gap) / whole


class Measurement(Frozen):
    """One model on several datasets: unweighted means beside the counts that they come from."""

    clean_accuracy: float = Field(description="mean over the datasets")
    robust_accuracy: float = Field(description="mean over datasets and radii")
    clean_calibration: float | None = Field(default=None, description="1 - calibration error, mean over the datasets")
    robust_calibration: float | None = Field(default=None, description="the same under attack, and over radii")
    datasets: dict[str, dict[str, Score]] = Field(description="dataset -> radius such as 4/255 -> counts")


class Weights(Frozen):
    """A weights file: where it is, and the SHA-256 of its bytes."""

    uri: str = Field(description="address in S3")
    sha256: str = Field(min_length=64, max_length=64, description="hex")
    bytes: int | None = Field(default=None, description="the file's size")


OF_THE_CLOCK = {"timestamp_ms", "train_seconds", "eval_seconds", "images_per_second", "system"}  # of an epoch's record


class EpochRecord(Frozen):
    """One finished epoch. The record's history lives in the checkpoint, so that nothing is lost with a node."""

    epoch: int = Field(ge=1, description="finished epochs, this one included")
    timestamp_ms: int = Field(description="Unix time of the end of the evaluation")
    steps: int = Field(ge=0, description="updates since the start of the run")
    train_loss: float = Field(description="mean over the epoch's images")
    parts: dict[str, float] = Field(description="terms of the loss, means over the epoch's images")
    lr: float = Field(description="rate of the epoch's last update")
    grad_norm: float = Field(description="L2 norm before clipping, mean over the updates that were made")
    skipped_updates: int = Field(default=0, ge=0, description="fp16: overflowed updates since the run's start")
    notes: tuple[str, ...] = Field(default=(), description="what the run had to do otherwise than configured, and why")
    clean_accuracy: float = Field(description="unweighted mean over dev sets")
    robust_accuracy: float = Field(description="unweighted mean over dev sets and radii")
    clean_calibration: float | None = Field(default=None, description="1 - calibration error, mean over dev sets")
    robust_calibration: float | None = Field(default=None, description="the same under attack, and over radii")
    datasets: dict[str, dict[str, Score]] = Field(description="dataset -> radius such as 4/255 -> counts")
    feasible: bool = Field(description="does this epoch reach the goal's floors")
    best_epoch: int = Field(ge=1, description="best epoch so far; this epoch when it just became the best")
    best_clean_accuracy: float = Field(description="clean accuracy of the best epoch")
    best_robust_accuracy: float = Field(description="robust accuracy of the best epoch")
    best_clean_calibration: float | None = Field(default=None, description="clean calibration of the best epoch")
    best_robust_calibration: float | None = Field(default=None, description="robust calibration of the best epoch")
    best_feasible: bool = Field(description="does the best epoch reach the floors")
    train_seconds: float = Field(description="wall time of the updates, attacks included")
    eval_seconds: float = Field(description="wall time of the evaluation")
    images_per_second: float = Field(description="trained images over train_seconds, all ranks together")
    system: dict[str, float] = Field(default_factory=dict, description="what rank 0's process took, see Usage.take")

    def repeatable(self) -> dict[str, Any]:
        """As JSON values, without what the clock and the machine say: the same in every run of one configuration."""
        return self.model_dump(mode="json", exclude=OF_THE_CLOCK)

    def at_best(self, metric: str) -> float:
        """The best epoch's value of a metric."""
        return float(getattr(self, f"best_{metric}"))


class Accuracies(Protocol):
    """Anything that carries what a goal speaks about."""

    @property
    def clean_accuracy(self) -> float: ...

    @property
    def robust_accuracy(self) -> float: ...

    @property
    def clean_calibration(self) -> float | None: ...

    @property
    def robust_calibration(self) -> float | None: ...


def violation(candidate: Accuracies, goal: Goal) -> float:
    """By how much the floors are missed, summed over them; 0 is feasible."""
    return sum(max(0.0, floor - float(getattr(candidate, name))) for name, floor in goal.at_least.items())


def is_better(candidate: Accuracies, best: Accuracies | None, goal: Goal) -> bool:
    """Feasible before infeasible; then the goal's metric; among infeasible first the smaller violation.

    Strict: on a tie the earlier epoch stays.
    """
    if best is None:
        return True
    return _rank(candidate, goal) > _rank(best, goal)


def _rank(candidate: Accuracies, goal: Goal) -> tuple[float, float]:
    return -violation(candidate, goal), goal.value(lambda name: getattr(candidate, name))


@dataclass(frozen=True)
class Accuracy:
    """The numbers that a goal speaks about; a calibration is None where it was not measured."""

    clean_accuracy: float
    robust_accuracy: float
    clean_calibration: float | None = None
    robust_calibration: float | None = None


def accuracy_of(datasets: Mapping[str, Mapping[str, Score]]) -> Accuracy:
    """From the counts: unweighted means over sets, of the robust ones over a set's radii first."""
    sets = [list(scores.values()) for scores in datasets.values()]
    return Accuracy(
        sum(scores[0].correct / scores[0].total for scores in sets) / len(sets),
        sum(sum(s.robust for s in scores) / (len(scores) * scores[0].total) for scores in sets) / len(sets),
        **calibrations_of(datasets),
    )


def gap_pairs(gaps: Sequence[int] | None, radii: int) -> list[tuple[int, int] | None]:
    """`Score.of`'s gaps of every radius, from those without attack and then at every radius."""
    return [None] * radii if gaps is None else [(gaps[0], gap) for gap in gaps[1:]]


def calibrations_of(datasets: Mapping[str, Mapping[str, Score]]) -> dict[str, float | None]:
    """Both calibrations as `accuracy_of` means them; None where a score has none."""
    clean = [next(iter(scores.values())).clean_calibration for scores in datasets.values()]
    attacked = [_mean([score.robust_calibration for score in scores.values()]) for scores in datasets.values()]
    return {"clean_calibration": _mean(clean), "robust_calibration": _mean(attacked)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def standing(epoch: int, now: Accuracies, last: EpochRecord | None, goal: Goal) -> dict[str, Any]:
    """An epoch record's fields about the best epoch, from what was measured `now` and the record before."""
    before = None if last is None else Accuracy(
        last.best_clean_accuracy, last.best_robust_accuracy, last.best_clean_calibration, last.best_robust_calibration
    )  # fmt: skip
    better = is_better(now, before, goal)
    best: Accuracies = now if before is None or better else before
    return {
        "feasible": violation(now, goal) == 0,
        "best_epoch": epoch if last is None or better else last.best_epoch,
        "best_clean_accuracy": best.clean_accuracy,
        "best_robust_accuracy": best.robust_accuracy,
        "best_clean_calibration": best.clean_calibration,
        "best_robust_calibration": best.robust_calibration,
        "best_feasible": violation(best, goal) == 0,
    }


class Decision(StrEnum):
    """What the receiver of a report wants: go on, end for good, or end so that the run can be resumed."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"


@dataclass(frozen=True)
class Progress:
    """One report. Every rank gets the same record and history; files are given on rank 0 only.

    `latest` is the state to resume from; `best` are the best epoch's weights, given when this record's epoch is the
    best one, so that whoever missed it is told again. `resumed`: the record was published before an interruption.
    `inputs`: SHA-256 of what the run started from: `weights`, and every dataset by its role (`train`, `dev.0`).
    `precision`: what the configuration's became on this device.
    """

    record: EpochRecord
    history: tuple[EpochRecord, ...]
    latest: Path | None
    best: Path | None
    resumed: bool = False
    inputs: dict[str, str] = field(default_factory=dict)
    precision: str = ""


class Report(Frozen):
    """What a trial tells its driver after an epoch: the records that the driver is not known to have, and the files."""

    epoch: int = Field(ge=1, description="the newest finished epoch")
    records: tuple[EpochRecord, ...] = Field(description="of this epoch and of earlier ones, as far as they are new")
    latest: Weights | None = Field(default=None, description="the state to go on from")
    best: Weights | None = Field(default=None, description="the best epoch's weights")
    provenance: dict[str, Any] = Field(default_factory=dict, description="where, with what and from what it runs")

    @classmethod
    def of(cls, history: Sequence[EpochRecord], stored: int, **facts: Any) -> Report:
        """With the records of epochs after `stored`, the last one that the driver has said it has."""
        return cls(epoch=history[-1].epoch, records=tuple(r for r in history if r.epoch > stored), **facts)


class At(NamedTuple):
    """How far a state is: finished epochs, which of them is the best (0: none yet), and steps inside the next one:
    updates, then dev sets."""

    epoch: int
    best: int
    steps: int = 0


StageName = Literal["teacher", "training", "evaluation"]


class Sign(Frozen):
    """A sign of life from inside an epoch: how far its present stage is."""

    stage: StageName = Field(description="the teacher's embeddings, updates, or the dev sets under attack")
    done: int = Field(ge=0, description="images")
    total: int = Field(ge=0, description="images of the stage; of an evaluation at most, what is fooled is left alone")
    images_per_second: float = Field(ge=0, description="over the stage so far; 0 at its first step")

    @property
    def seconds_left(self) -> float | None:
        """Of the stage; None where the rate is not known yet."""
        return max(0, self.total - self.done) / self.images_per_second if self.images_per_second else None


@dataclass(frozen=True)
class Answer:
    """A driver's answer to a report. `stored`: the last epoch whose record it has, and all before; 0 for none."""

    decision: Decision
    stored: int


FailureKind = Literal["out-of-memory", "non-finite", "invalid", "bug"]


def storable(text: Any) -> Any:
    """Text without what no database, or no JSON, takes: halves of characters, as in a name of bytes, and NULs."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd") if isinstance(text, str) else text


class Ending(Frozen):
    """How a trial's processes left. One that was interrupted has not ended: it goes on from its newest state.

    `lost`: it was interrupted since a process or a node of it went away. `of_every_trial`: it failed of something that
    no parameter of it decides.
    """

    outcome: Literal["finished", "stopped", "paused", "interrupted", "failed"]
    failure_kind: FailureKind | None = None
    message: Annotated[str | None, BeforeValidator(storable)] = None
    lost: bool = False
    of_every_trial: bool = False
    seconds: float = Field(default=0.0, description="wall time in the worker")

    @classmethod
    def failed(cls, kind: FailureKind, message: str, seconds: float = 0.0) -> Ending:
        return cls(outcome="failed", failure_kind=kind, message=message, seconds=seconds)


@dataclass(frozen=True)
class TrainResult:
    """How the run ended. `best` is the record of the best epoch, `best_weights` its file (rank 0 only)."""

    history: tuple[EpochRecord, ...]
    outcome: Literal["finished", "stopped", "paused"]
    best: EpochRecord | None
    best_weights: Path | None
    seconds: float = field(compare=False, default=0.0)
