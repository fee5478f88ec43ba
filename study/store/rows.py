"""Studies, trials and attempts as the store gives them: frozen values, free of the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from study.spec.config import StudyConfig
from trainers.schema.records import EpochRecord, Measurement, Weights
from trainers.schema.training import Goal

# `dropped` is a user's word: the trial's history stays, and it counts nowhere.
FINISHED = ("complete", "pruned", "failed", "dropped")


@dataclass(frozen=True)
class StudyRow:
    """A study as stored. `driven_seconds` is wall time of all drivers together; `message` says why it is in `state`.

    `spec` carries the budget of now, which `agft extend` may have raised; `spec_hash` is that of the study file.
    """

    name: str
    spec: StudyConfig
    spec_hash: str
    desired: str
    state: str
    created_ms: int
    driven_seconds: float
    token: int
    lease_owner: str | None
    lease_seconds: float  # left; 0 or less when nobody drives
    baseline: Measurement | None  # the unmodified CLIP on the dev sets
    provenance: dict[str, Any] | None
    message: str | None = None
    lag: int | None = None  # trial n knows trials 0 ... n-1-lag; None before its first driver
    starts: tuple[dict[str, Any], ...] | None = None  # {origin, values}: given trials; with `measured`: known ones
    extended_at: int = 0  # trials that there were when the budget was last raised

    @property
    def goal(self) -> Goal | None:
        """The goal with every floor as a number; None before the unmodified CLIP is measured."""
        return None if self.baseline is None else self.spec.goal.resolve(self.baseline)

    @property
    def slug(self) -> str:
        """Name and time of creation: the study's own place in S3, whatever database it lives in."""
        return f"{self.name}-{self.created_ms}"

    @property
    def optuna_name(self) -> str:
        """Name of its projection in Optuna's tables; no other study's, since a name holds no slash."""
        return f"agft/{self.name}"


@dataclass(frozen=True)
class Attempt:
    """One start of a trial by one driver (`token`). `outcome` is None while it runs or when its driver was lost."""

    token: int
    started_ms: int
    ended_ms: int | None = None
    device_seconds: float = 0.0
    outcome: str | None = None
    provenance: dict[str, Any] | None = None


@dataclass(frozen=True)
class Proposal:
    """What a new trial is to be. `memory`: what the sampler keeps with it; the rest says where it comes from."""

    number: int
    params: dict[str, Any]
    origin: str | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)
    rerun_of: int | None = None


@dataclass(frozen=True)
class TrialRow:
    """A trial as stored, with its epoch records, oldest first."""

    number: int
    state: str
    params: dict[str, Any]
    config: dict[str, Any]
    started_ms: int
    ended_ms: int | None = None
    stop_reason: str | None = None
    failure_kind: str | None = None
    latest: Weights | None = None  # the state to go on from
    best: Weights | None = None  # the best epoch's weights
    rerun_of: int | None = None
    origin: str | None = None  # of a given trial; None: the sampler proposed it
    memory: dict[str, Any] | None = field(default_factory=dict)  # what the sampler keeps with it; None: to be derived
    dropped_at: int | None = None  # trials from this number on do not know it
    state_before: str | None = None  # what it had ended as when it was dropped
    finishing: bool = False  # it was stopped, and is then trained to its end
    epochs: tuple[EpochRecord, ...] = ()
    verdicts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)  # of the verdicts
    attempts: tuple[Attempt, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the trial's outcome is final."""
        return self.state in FINISHED

    def runs_under(self, token: int) -> bool:
        """Whether the driver of that lease has an attempt at the trial under way."""
        mine = [attempt for attempt in self.attempts if attempt.token == token]
        return self.state == "running" and any(attempt.ended_ms is None for attempt in mine)

    @property
    def stopped_at(self) -> int | None:
        """The first epoch after which the stopping rule wanted it to end."""
        return min((epoch for epoch, decision in self.verdicts.items() if decision == "stop"), default=None)

    @property
    def whole(self) -> bool:
        """Whether it has reached its last epoch, said so or not."""
        planned = self.config.get("train", {}).get("epochs")
        return planned is not None and self.last is not None and self.last.epoch >= planned

    def cut_off(self, why: str) -> tuple[str, str | None]:
        """State and reason of an unfinished trial that nobody will go on with."""
        return ("complete", None) if self.whole else ("pruned", self.stop_reason if self.finishing else why)

    @property
    def kept(self) -> dict[str, str]:
        """Role (`latest`, `best`) -> URI of the checkpoints on record."""
        return {role: found.uri for role, found in self.files.items()}

    @property
    def files(self) -> dict[str, Weights]:
        """Role -> the checkpoints on record, with their SHA-256."""
        return {role: found for role, found in (("latest", self.latest), ("best", self.best)) if found}

    @property
    def out_of_memory(self) -> bool:
        """Whether its last attempt ended for want of memory."""
        return bool(self.attempts) and self.attempts[-1].outcome == "out-of-memory"

    @property
    def last(self) -> EpochRecord | None:
        """The newest epoch record."""
        return self.epochs[-1] if self.epochs else None

    @property
    def device_seconds(self) -> float:
        """What all attempts together cost."""
        return sum(attempt.device_seconds for attempt in self.attempts)
