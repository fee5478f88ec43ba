"""What a run reports after every epoch, and which epoch is the best. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from trainers.schema.training import Goal
from trainers.schema.units import Frozen


class Score(Frozen):
    """One dataset under one attack radius: integer counts over all ranks, and their ratios."""

    clean_accuracy: float = Field(ge=0, le=1, description="correct / total")
    robust_accuracy: float = Field(ge=0, le=1, description="robust / total")
    correct: int = Field(ge=0, description="images classified right without attack")
    robust: int = Field(ge=0, description="images classified right under the attack")
    total: int = Field(ge=1, description="images evaluated")

    @classmethod
    def of(cls, *, correct: int, robust: int, total: int) -> Score:
        """From the counts."""
        return cls(
            clean_accuracy=correct / total, robust_accuracy=robust / total, correct=correct, robust=robust, total=total
        )


class Measurement(Frozen):
    """One model on several datasets: unweighted means beside the counts that they come from."""

    clean_accuracy: float = Field(description="mean over the datasets")
    robust_accuracy: float = Field(description="mean over datasets and radii")
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
    datasets: dict[str, dict[str, Score]] = Field(description="dataset -> radius such as 4/255 -> counts")
    feasible: bool = Field(description="does this epoch reach the goal's floors")
    best_epoch: int = Field(ge=1, description="best epoch so far; this epoch when it just became the best")
    best_clean_accuracy: float = Field(description="clean accuracy of the best epoch")
    best_robust_accuracy: float = Field(description="robust accuracy of the best epoch")
    best_feasible: bool = Field(description="does the best epoch reach the floors")
    train_seconds: float = Field(description="wall time of the updates, attacks included")
    eval_seconds: float = Field(description="wall time of the evaluation")
    images_per_second: float = Field(description="trained images over train_seconds, all ranks together")
    system: dict[str, float] = Field(default_factory=dict, description="what rank 0's process took, see Usage.take")

    def repeatable(self) -> dict[str, Any]:
        """As JSON values, without what the clock and the machine say: the same in every run of one configuration."""
        return self.model_dump(mode="json", exclude=OF_THE_CLOCK)

    def at_best(self, metric: str) -> float:
        """The best epoch's `clean_accuracy` or `robust_accuracy`."""
        return float(getattr(self, f"best_{metric}"))


class Accuracies(Protocol):
    """Anything that carries the two accuracies that a goal speaks about."""

    @property
    def clean_accuracy(self) -> float: ...

    @property
    def robust_accuracy(self) -> float: ...


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
    """

    record: EpochRecord
    history: tuple[EpochRecord, ...]
    latest: Path | None
    best: Path | None
    resumed: bool = False
    inputs: dict[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Answer:
    """A driver's answer to a report. `stored`: the last epoch whose record it has, and all before; 0 for none."""

    decision: Decision
    stored: int


class Ending(Frozen):
    """How a trial's processes left. `failure_kind` and `message` are of a failure."""

    outcome: Literal["finished", "stopped", "paused", "interrupted", "failed"]
    failure_kind: str | None = None
    message: str | None = None
    seconds: float = Field(default=0.0, description="wall time in the worker")

    @classmethod
    def failed(cls, kind: str, message: str, seconds: float = 0.0) -> Ending:
        return cls(outcome="failed", failure_kind=kind, message=message, seconds=seconds)


@dataclass(frozen=True)
class TrainResult:
    """How the run ended. `best` is the record of the best epoch, `best_weights` its file (rank 0 only)."""

    history: tuple[EpochRecord, ...]
    outcome: Literal["finished", "stopped", "paused"]
    best: EpochRecord | None
    best_weights: Path | None
    seconds: float = field(compare=False, default=0.0)
