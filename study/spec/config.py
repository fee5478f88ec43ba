"""The study file: one frozen record, and everything wrong with a file reported at once, with lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from study.errors import UserError
from study.spec.dimension import Dimension
from study.spec.evaluation import FinalEvaluation, Selection
from study.spec.promotion import FloorText, PromoteConfig, parse_floor
from study.spec.space import parse_space
from trainers.errors import no_such
from trainers.objectives import MethodConfig
from trainers.objectives.presets import PRESETS
from trainers.schema.named import In
from trainers.schema.records import Accuracies
from trainers.schema.training import CALIBRATIONS, AttackConfig, DataConfig, Goal, Metric, ModelConfig, TrainConfig
from trainers.schema.units import Frozen, Several
from trainers.table import Table, instance_rule

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def _check_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(no_such("preset", name, PRESETS))
    return name


PresetName = Annotated[str, AfterValidator(_check_preset)]


class StudyData(Frozen):
    """Datasets by role; the roles share no set and, checked when they are read, no image."""

    train: str = Field(description="dataset to fine-tune on")
    dev: Several[str] = Field(min_length=1, description="zero-shot sets that the search looks at")
    confirm: Several[str] = Field(min_length=1, description="promotion chooses among the top trials here")
    final: Several[str] = Field(min_length=1, description="reported for the winner only")


class StudyEvaluation(Frozen):
    """Evaluations that are the same for every trial, whatever it trains with."""

    select: Selection = Field(default_factory=Selection, description="after every epoch, on the dev sets")
    final: FinalEvaluation = Field(
        default_factory=FinalEvaluation, description="at promotion, on confirm and final sets"
    )


class GoalConfig(Frozen):
    """What the study maximises, and what it must not give up for it."""

    metric: Metric = Field("robust_accuracy", description="metric to maximise")
    metrics: tuple[Metric, ...] = Field(
        (), description="instead of `metric`, several: the search looks for their Pareto front"
    )
    mode: Literal["max"] = Field("max", description="direction")
    subject_to: dict[Metric, FloorText] = Field(
        default_factory=dict, description="floors, e.g. {clean_accuracy: '>= clip - 0.06'}"
    )

    @model_validator(mode="before")
    @classmethod
    def _first_of_several(cls, given: Any) -> Any:
        several = given.get("metrics") if isinstance(given, Mapping) else None
        if not isinstance(several, list | tuple) or not several:
            return given
        if len(several) < 2 or len(set(map(str, several))) < len(several):
            raise ValueError("metrics: two or more different ones make a front; write metric for a single one")
        if given.get("metric", several[0]) != several[0]:
            raise ValueError("write metric, or metrics, but not both")
        return {**given, "metric": several[0]}

    @property
    def names(self) -> tuple[Metric, ...]:
        """What is maximised, one or more."""
        return self.metrics or (self.metric,)

    @property
    def calibrations(self) -> tuple[Metric, ...]:
        """Those that it speaks of, maximised or with a floor: shown beside the accuracies."""
        return tuple(name for name in CALIBRATIONS if name in (*self.names, *self.subject_to))

    def resolve(self, clip: Accuracies) -> Goal:
        """The goal with every floor as a number, given what the unmodified model reaches."""
        return self.at({name: parse_floor(text).resolve(getattr(clip, name)) for name, text in self.subject_to.items()})

    def at(self, floors: Mapping[Metric, float]) -> Goal:
        """The goal with these floors."""
        return Goal(metric=self.metric, metrics=self.metrics, mode=self.mode, at_least=dict(floors))


@dataclass(frozen=True)
class Sampler:
    """A row of SAMPLERS: who proposes the next trial, and all that is said about it.

    `make(spec, seed, dimensions)`: Optuna's sampler, made anew for every proposal. `words(settings)`: how it goes about
    it, for `agft plan`. `reads`: the settings that it reads. `blind(settings)`: how many first trials cannot depend on
    results; None: no trial does. `one_metric`: it knows no front. `exhaustive`: it proposes nothing, all combinations
    of the choices being given trials. `observes`: it learns from earlier studies' results (`prior.observe`).
    `remarks(spec)`: settings of a study that have no effect with it.
    """

    make: Callable[[StudyConfig, int, Sequence[Dimension]], BaseSampler]
    words: Callable[[SamplerConfig], str]
    reads: tuple[str, ...] = ()
    blind: Callable[[SamplerConfig], int] | None = None
    one_metric: bool = False
    exhaustive: bool = False
    observes: bool = False
    remarks: Callable[[StudyConfig], Iterable[str]] = lambda spec: ()


SAMPLERS: Table[Sampler] = Table(
    "sampler",
    "agft.samplers",
    {
        "tpe": "study.search.samplers:TPE",
        "gp": "study.search.gaussian:GP",
        "auto": "study.search.gaussian:AUTO",
        "cmaes": "study.search.samplers:CMAES",
        "nsga2": "study.search.samplers:NSGA2",
        "qmc": "study.search.samplers:QMC",
        "random": "study.search.samplers:RANDOM",
        "grid": "study.search.samplers:GRID",
    },
    instance_rule(Sampler),
)


class SamplerConfig(Frozen):
    """Who proposes the next trial (`study.search.samplers`)."""

    name: Annotated[str, In(SAMPLERS)] = Field(
        "tpe", description="how: see `docs/search.md`; grid: every combination of the choices, each one trial"
    )
    startup_trials: int = Field(10, ge=1, description="random trials before results are modelled")
    population: int | None = Field(
        None, ge=4, description="trials of a generation; null: nsga2 16, cmaes 4 + 3 ln(number of ranges)"
    )

    @property
    def row(self) -> Sampler:
        """The sampler's row of the table."""
        return SAMPLERS[self.name]


@dataclass(frozen=True)
class StoppingRule:
    """A row of STOPPING: when a trial is judged, and how.

    `rungs(settings, epochs)`: the epochs after which a trial of so many is judged, in order. `verdict(settings, own,
    others)`: `("continue" | "stop", reason)`, given the trial's best value so far and the others' at the same epoch.
    `reads`: the settings that it reads. `remarks(spec)`: settings of a study that have no effect with it. `stops`:
    False of the rule that never does.
    """

    rungs: Callable[[SchedulerConfig, int], tuple[int, ...]]
    verdict: Callable[[SchedulerConfig, float, list[float]], tuple[str, str]]
    reads: tuple[str, ...] = ()
    remarks: Callable[[StudyConfig], Iterable[str]] = lambda spec: ()
    stops: bool = True


STOPPING: Table[StoppingRule] = Table(
    "stopping rule",
    "agft.stopping",
    {
        "asha": "study.search.stopping:ASHA",
        "median": "study.search.stopping:MEDIAN",
        "none": "study.search.stopping:NONE",
    },
    instance_rule(StoppingRule),
)


class SchedulerConfig(Frozen):
    """Early stopping of trials (`study.search.stopping`)."""

    name: Annotated[str, In(STOPPING)] = Field(
        "asha", description="asha: a rung keeps the best; median: whoever is below the others' median stops; none"
    )
    grace_fraction: float = Field(0.25, gt=0, le=1, description="no trial stops before this fraction of its epochs")
    reduction_factor: int = Field(3, ge=2, description="a rung keeps one in so many")
    min_trials: int = Field(
        4, ge=1, description="nobody is stopped by comparison before so many trials that it knows reached the epoch"
    )
    finish: int = Field(
        0, ge=0, description="when the budget is used up, train so many of the best stopped trials to their end"
    )
    patience: int | None = Field(
        None, ge=1, description="a trial also ends when so many epochs brought nothing; it counts as complete"
    )
    min_delta: float = Field(0.0, ge=0, le=1, description="what counts as an improvement, for `patience`")

    @property
    def row(self) -> StoppingRule:
        """The rule's row of the table."""
        return STOPPING[self.name]


def one_gpu_or_none(gpus: float) -> float:
    """A worker computes on one device."""
    if gpus > 1:
        raise ValueError("a worker uses one GPU, more would lie idle; write 1, and as many workers")
    return gpus


class ResourcesConfig(Frozen):
    """What one trial needs, and how many run side by side."""

    workers: int = Field(1, ge=1, description="Ray Train workers a trial")
    gpus_per_worker: Annotated[float, AfterValidator(one_gpu_or_none)] = Field(
        0, ge=0, description="GPUs a worker: 0, 1, or a part of one where a trial has one worker"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores a worker")
    max_concurrent: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="trials at once; auto = as many as the cluster holds"
    )
    priority: int = Field(0, description="trials of a study with a higher one start first on a shared cluster")
    silence: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto",
        description="seconds without a word after which a trial's workers are ended and it goes on from its newest "
        "checkpoint; auto = 3 times the longest wait for a word (a report, or a sign from inside an epoch) so far, at "
        "least 300, and 3600 before the first",
    )
    patience: float = Field(
        900, gt=0, description="seconds that trials wait for S3 while it is away; then the study pauses, to be resumed"
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_gpus_for_several(cls, gpus: float, given: ValidationInfo) -> float:
        workers = given.data.get("workers", 1)
        if workers > 1 and 0 < gpus < 1:
            rule = f"{workers} workers need a GPU each, since NCCL takes no two on one; write 1, or workers: 1"
            raise ValueError(rule)
        return gpus

    def of_worker(self) -> dict[str, float]:
        """What Ray sets aside for one worker, by name."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})

    def of_trial(self) -> dict[str, float]:
        """What it sets aside for a whole trial."""
        return {name: amount * self.workers for name, amount in self.of_worker().items()}


class BudgetConfig(Frozen):
    """When the study ends; what is used up is remembered over restarts."""

    trials: int = Field(ge=1, description="number of trials")
    hours: float | None = Field(None, gt=0, description="wall-clock hours of driving, over all attempts")
    gpu_hours: float | None = Field(None, gt=0, description="GPU-hours of all trials together")
    patience: int | None = Field(None, ge=1, description="end when so many trials in a row improved nothing")
    min_delta: float = Field(0.0, ge=0, le=1, description="what counts as an improvement, for `patience`")


class PriorConfig(Frozen):
    """Earlier studies of the same database to start from (`study.search.prior`)."""

    studies: Several[str] = Field(min_length=1, description="names of studies")
    top: int = Field(3, ge=1, description="so many trials of each: its best feasible full-length ones")
    observe: bool = Field(
        False, description="the sampler also knows the results of all their full-length trials, from the first trial on"
    )


class StudyConfig(Frozen):
    """One study. Service addresses and secrets come from the environment, never from here."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="lower case letters, digits, . _ -")
    model: ModelConfig = Field(default_factory=ModelConfig, description="the CLIP to start from")
    method: MethodConfig = Field(description="objective")
    alternatives: Several[MethodConfig] = Field((), description="further methods, complete: the search chooses one")
    attack: AttackConfig = Field(default_factory=AttackConfig, description="training attack")
    data: StudyData = Field(description="datasets by role")
    train: TrainConfig = Field(default_factory=TrainConfig, description="length and optimizer of a trial")
    evaluate: StudyEvaluation = Field(default_factory=StudyEvaluation, description="fixed evaluations")
    search: dict[str, Any] = Field(default_factory=dict, description="dotted path -> range or choices")
    warm_starts: Several[PresetName | dict[str, Any]] = Field(
        ({},), description="first trials: by dotted path, an empty one being the file's own values; or a preset's name"
    )
    prior: PriorConfig | None = Field(None, description="earlier studies whose best trials are tried first")
    goal: GoalConfig = Field(default_factory=GoalConfig, description="what the study maximises")
    lag: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        description="trial n knows the outcomes of trials 0 ... n-1-lag and no others, so that the search does not "
        "depend on the clock; at most lag + 1 run at once; auto = the trials that fit when the study begins, plus 1",
    )
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="who proposes trials")
    scheduler: SchedulerConfig = Field(default_factory=SchedulerConfig, description="early stopping")
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig, description="what a trial needs")
    budget: BudgetConfig = Field(description="when the study ends")
    promote: PromoteConfig = Field(default_factory=PromoteConfig, description="how the champion is chosen")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the search and of every trial")

    @model_validator(mode="before")
    @classmethod
    def _a_front_has_no_early_stopping(cls, given: Any) -> Any:
        """A stopped trial never enters a front: with several metrics the default is to stop none."""
        goal = given.get("goal") if isinstance(given, Mapping) else None
        if isinstance(goal, Mapping) and goal.get("metrics") and "scheduler" not in given:
            return {**given, "scheduler": {"name": "none"}}
        return given

    @model_validator(mode="after")
    def _preferences_are_for_fronts(self) -> StudyConfig:
        if self.promote.preference is not None and not self.goal.metrics:
            raise ValueError("promote.preference: chooses on a front; goal.metrics names no several metrics")
        return self

    def dimensions(self) -> list[Dimension]:
        """The search space; an entry that is wrong never gets this far."""
        dimensions, problems = parse_space(self.search, self.blocks())
        assert not problems, problems
        return dimensions

    @property
    def methods(self) -> tuple[MethodConfig, ...]:
        """All that the search chooses among; usually one."""
        return (self.method, *self.alternatives)

    def blocks(self) -> dict[str, dict[str, Any]]:
        """The methods by name, as plain JSON values."""
        return {method.name: method.model_dump(mode="json") for method in self.methods}

    def base(self, goal: Goal | None = None) -> dict[str, Any]:
        """A trial's configuration before sampled values are put in, as plain JSON values."""
        parts = self.model_dump(mode="json", include={"model", "method", "attack", "train", "seed"})
        data = DataConfig(train=self.data.train).model_dump(mode="json")
        select = self.evaluate.select.suite("dev", self.data.dev).model_dump(mode="json")
        return {**parts, "data": data, "evaluate": select, "goal": (goal or Goal()).model_dump(mode="json")}

    def renamed(self, name: str) -> StudyConfig:
        """The same study under another name; `UserError` for one that cannot be a name."""
        try:
            return type(self).model_validate({**self.model_dump(mode="json"), "name": name})
        except ValidationError:
            rule = "at most 63 lower case letters, digits, . _ -, the first one a letter or digit"
            raise UserError(f"name: {name!r}: a study's name is {rule}") from None

    def repeated(self, name: str, trial: Mapping[str, Any], seeds: Sequence[int], **more: Any) -> StudyConfig:
        """The study that runs a trial's configuration again, once a seed, each epoch selected by the same rule."""
        whole = {part: trial[part] for part in ("model", "method", "attack", "train")}
        return type(self).model_validate({
            **self.model_dump(mode="json"), **whole, "name": name, "alternatives": [], "prior": None,
            "search": {"seed": {"choices": list(seeds)}}, "warm_starts": [{}], "sampler": {"name": "grid"},
            "scheduler": {"name": "none"}, "budget": {"trials": len(seeds)}, **more,
        })  # fmt: skip

    def canonical(self) -> str:
        """The whole record as JSON with sorted keys: what the study store keeps and compares."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    def spec_hash(self) -> str:
        """SHA-256 of `canonical()`: the study's identity besides its name."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def data_sets(self) -> dict[str, tuple[str, ...]]:
        """Dataset names by role."""
        return {
            "train": (self.data.train,),
            "dev": self.data.dev,
            "confirm": self.data.confirm,
            "final": self.data.final,
        }


def load_canonical(text: str) -> StudyConfig:
    """A study from the store's JSON; `UserError` where this machine lacks an entry that it names."""
    try:
        return StudyConfig.model_validate_json(text)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise UserError(f"a stored study cannot be read here: {'; '.join(wrong)}") from None
