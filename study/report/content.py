"""What a report says, as one typed value: the pages, the figures and `report.json` are all made of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import CategoricalDistribution

from study.report.promotions import Decision, decisions
from study.results.facts import Trial, plain, trials_of
from study.results.importance import Importances, importances
from study.results.ranking import best_so_far, best_trial, front_metrics, pareto_front
from study.results.status import live_state
from study.spec.dimension import Dimension, short, shown
from study.spec.space import known_paths
from study.store.rows import StudyRow, TrialRow
from trainers.schema.training import ACCURACIES, CALIBRATIONS

CALIBRATION = ("method.scale_ratio", "method.logit_scale")
RATE = "train.optimizer.lr"


@dataclass(frozen=True)
class Axis:
    """One searched parameter: its range, or its choices in rising order."""

    path: str
    label: str
    log: bool = False
    low: float = 0.0
    high: float = 1.0
    choices: tuple[Any, ...] = ()

    def text(self, value: Any) -> str:
        """A value as a person writes it."""
        return "-" if value is None else shown(self.path, value)


@dataclass(frozen=True)
class Step:
    """State of the search when a trial had finished: devices' time spent until then, and the best trial known."""

    trial: int
    ended_ms: int
    device_seconds: float
    best: int | None
    clean_accuracy: float | None
    robust_accuracy: float | None
    clean_calibration: float | None = None
    robust_calibration: float | None = None


@dataclass(frozen=True)
class Bar:
    """One attempt of a trial on the cluster's clock. `outcome` is the trial's state for its last attempt."""

    trial: int
    token: int
    started_ms: int
    ended_ms: int
    outcome: str
    host: str
    device: str


@dataclass(frozen=True)
class Content:
    """Everything that a report of a study shows. Times are Unix ms, accuracies fractions on the dev sets.

    `links` are addresses in the MLflow UI: `study`, and a trial's number as text. `marked` are parameters with a name
    in the heat maps of a grid (`map_axes`). `audit` is the line of `agft audit`; it is empty in reports that are drawn
    while a study goes on. `calibrations`: those that the goal speaks of; `plane`: the two metrics of the trade-off,
    which are the goal's if it has two.
    """

    study: str
    state: str
    summary: str
    drawn_ms: int
    budget: int
    created_ms: int
    device_seconds: float
    metrics: tuple[str, ...]
    floors: dict[str, float]
    unmodified: dict[str, float] | None
    axes: tuple[Axis, ...]
    trials: tuple[Trial, ...]
    best: int | None
    pareto: tuple[int, ...]
    importances: tuple[Importances, ...]
    progress: tuple[Step, ...]
    timeline: tuple[Bar, ...]
    links: dict[str, str]
    provenance: dict[str, Any]
    marked: tuple[tuple[str, dict[str, Any]], ...]
    promotions: tuple[Decision, ...] = ()
    audit: str = ""
    calibrations: tuple[str, ...] = ()
    plane: tuple[str, ...] = ACCURACIES

    @cached_property
    def _by_number(self) -> dict[int, Trial]:
        return {trial.number: trial for trial in self.trials}

    def trial(self, number: int) -> Trial:
        """One trial by its number."""
        return self._by_number[number]

    @property
    def measure(self) -> str:
        """The name of what is compared: the goal's metric, or the mean of several."""
        names = [name.replace("_", " ") for name in self.metrics]
        if len(names) > 1 and set(self.metrics) <= {*ACCURACIES}:
            return f"mean of {' and '.join(name.removesuffix(' accuracy') for name in names)} accuracy"
        return names[0] if len(names) == 1 else f"mean of {' and '.join(names)}"

    def value(self, of: Trial | Step) -> float:
        """What is compared of a trial or a step; nan where it has measured nothing."""
        return self._mean({name: getattr(of, name) for name in self.metrics})

    @property
    def level(self) -> float:
        """What is compared, of the unmodified model."""
        return self._mean(self.unmodified or {})

    def _mean(self, found: Mapping[str, float | None]) -> float:
        values = [float("nan") if (value := found.get(name)) is None else value for name in self.metrics]
        return sum(values) / len(values)

    def in_state(self, *states: str) -> list[Trial]:
        """Trials in these states that have measured something."""
        return [trial for trial in self.trials if trial.state in states and trial.robust_accuracy is not None]

    def json(self) -> dict[str, Any]:
        """For `report.json`: plain values."""
        return asdict(self)


def content_of(
    study: StudyRow,
    rows: Sequence[TrialRow],
    *,
    links: Mapping[str, str] | None = None,
    now_ms: int | None = None,
    known: Sequence[Importances] | None = None,
    promotions: Iterable[Mapping[str, Any]] = (),
    audit: str = "",
) -> Content:
    """The content of now. `known`: importances of the same trials, which take a second to compute.

    `promotions`: rows of `study.store.requests.promotions`; `audit`: the line of an audit of all this.
    """
    spec = study.spec
    goal = study.goal
    best = best_trial(rows, goal) if goal else None
    trials, dimensions = trials_of(study, rows), spec.dimensions()
    axes = tuple(_axis(dimension) for dimension in dimensions)
    now = now_ms or int(time.time() * 1000)
    return Content(
        study=study.name,
        state=live_state(study),
        summary=_summary(study),
        drawn_ms=now,
        budget=spec.budget.trials,
        created_ms=study.created_ms,
        device_seconds=sum(row.device_seconds for row in rows),
        metrics=spec.goal.names,
        floors={str(name): value for name, value in goal.at_least.items()} if goal else {},
        unmodified={name: value for name in (*ACCURACIES, *CALIBRATIONS)
                    if (value := getattr(study.baseline, name)) is not None} if study.baseline else None,
        axes=axes,
        trials=tuple(trials),
        best=best.number if best else None,
        pareto=tuple(row.number for row in pareto_front(rows, spec.goal.names)),
        importances=tuple(known if known is not None else importances(trials, dimensions, also=spec.goal.calibrations)),
        progress=tuple(_steps(study, rows)),
        timeline=tuple(bar for row in rows for bar in _bars(study, row, now)),
        links=dict(links or {}),
        provenance=study.provenance or {},
        marked=tuple(_marked(study, dimensions, axes)),
        promotions=decisions(promotions),
        audit=audit,
        calibrations=spec.goal.calibrations,
        plane=front_metrics(spec.goal.names) if len(spec.goal.names) == 2 else ACCURACIES,
    )  # fmt: skip


def label_of(dimension: Dimension) -> str:
    """A parameter's short name, with what it is relative to."""
    relative = {"of_model": " (x model's)", "of_eps": " (x eps)"}.get(dimension.wrapper, "")
    return f"{short(dimension.path).replace('_', ' ').replace('.', ' ')}{relative}"


def _axis(dimension: Dimension) -> Axis:
    distribution, label = dimension.distribution, label_of(dimension)
    if isinstance(distribution, CategoricalDistribution):
        choices = list(dict.fromkeys(distribution.choices))
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in choices)
        return Axis(dimension.path, label, choices=tuple(sorted(choices) if numbers else choices))
    return Axis(dimension.path, label, bool(distribution.log), float(distribution.low), float(distribution.high))


def map_axes(axes: Sequence[Axis]) -> tuple[Axis, Axis] | None:
    """Down and along in the heat maps of a study that searched two paths with choices, or these and a learning rate.

    A scale of logits and a learning rate are coupled, so that a map of scales at one rate shows mostly the rate.
    """
    both = axes if len(axes) == 2 else [axis for axis in axes if axis.path != RATE]
    if len(both) != 2 or len(axes) > 3 or not all(axis.choices for axis in axes):
        return None
    return both[0], both[1]


def _marked(study: StudyRow, found: Sequence[Dimension], axes: Sequence[Axis]) -> list[tuple[str, dict[str, Any]]]:
    """Cells with a name: the fields' defaults, which are the paper's, and AGFT without calibration (1 and 1)."""
    known, both = known_paths(study.spec.method.name), map_axes(axes)
    if both is None or not all(axis.path in known for axis in both):
        return []  # no grid, or methods against something: none of the cells is a paper's
    found = [d for d in found if d.path in {axis.path for axis in both}]
    defaults = {d.path: plain(d, known[d.path][0].get_default(call_default_factory=True)) for d in found}
    named = [("the paper's setting", defaults)]
    if {axis.path for axis in both} == set(CALIBRATION) and all(d.wrapper in ("", "of_model") for d in found):
        named.append(("no calibration (1 and 1)", dict.fromkeys(CALIBRATION, 1.0)))
    return [(name, values) for name, values in named if all(values[axis.path] in axis.choices for axis in both)]


def _summary(study: StudyRow) -> str:
    spec, select = study.spec, study.spec.evaluate.select
    wanted = ", ".join(spec.goal.names).replace("_", " ")
    return (
        f"{', '.join(spec.blocks())} on {spec.model.arch} ({spec.model.pretrained}), fine-tuned on {spec.data.train}. "
        f"Selection: {wanted} on {', '.join(spec.data.dev)}; protocol {select.protocol}, {select.attack.name} with "
        f"{select.attack.steps} steps, eps {', '.join(f'{eps * 255:g}/255' for eps in select.attack.eps)}; "
        f"seed {spec.seed}."
    )


def _steps(study: StudyRow, rows: Sequence[TrialRow]) -> list[Step]:
    if study.goal is None:
        return []
    steps, spent = [], 0.0
    for row, best in best_so_far(rows, study.goal):
        spent += row.device_seconds
        last = best and best.last
        steps.append(
            Step(
                row.number, row.ended_ms or row.started_ms, spent, best.number if best else None,
                last.best_clean_accuracy if last else None, last.best_robust_accuracy if last else None,
                last.best_clean_calibration if last else None, last.best_robust_calibration if last else None,
            )
        )  # fmt: skip
    return steps


def _bars(study: StudyRow, row: TrialRow, now: int) -> list[Bar]:
    bars = []
    for place, attempt in enumerate(row.attempts):
        newest = place == len(row.attempts) - 1
        alive = newest and not row.finished and study.lease_seconds > 0
        after = now if newest else row.attempts[place + 1].started_ms
        reports = [e.timestamp_ms for e in row.epochs if attempt.started_ms <= e.timestamp_ms <= after]
        heard = max(reports, default=attempt.started_ms)  # of a lost driver's attempt nobody knows the end
        ended = attempt.ended_ms or (now if alive else heard)
        outcome = row.state if newest and row.finished else "running" if alive else attempt.outcome or "lost"
        where = attempt.provenance or {}
        devices = where.get("devices") or []
        bars.append(
            Bar(row.number, attempt.token, attempt.started_ms, ended, outcome, where.get("hostname", ""),
                devices[0] if devices else "CPU" if where else "")
        )  # fmt: skip
    return bars
