"""Figures about results: the trade-off, the search's progress, learning curves, the time line of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study.figures.content import Bars, Figure, Mark, Panel, Rule, Scale, Series
from study.figures.style import LABELS, OUTCOMES
from study.report.content import Bar, Content
from study.results.facts import METRICS, Trial

CROWDED = 1.2  # points of the trade-off's first metric
REFERENCES = {"paper": "the paper's defaults", "warm start": "warm start"}
REPORT, BAR = 0.37, 0.74  # half of a report's tick, and a bar, of a trial's line
NOTHING = "No trial has measured anything yet."


def in_percent(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Fractions as percent; None stays."""
    return tuple(None if value is None else 100 * value for value in values)


def accuracies(content: Content, trials: Sequence[Trial]) -> tuple[tuple[float | None, ...], ...]:
    """The two metrics of the trade-off in percent, usually clean and robust accuracy."""
    return tuple(in_percent([getattr(trial, metric) for trial in trials]) for metric in content.plane)


def hover(content: Content, trial: Trial) -> str:
    """What pointing at a trial shows."""
    lines = [f"trial {trial.number}: {LABELS[trial.state]}, {trial.epochs}/{trial.planned_epochs} epochs"]
    if trial.robust_accuracy is not None and trial.clean_accuracy is not None:
        lines.append(f"clean {100 * trial.clean_accuracy:.1f} %, robust {100 * trial.robust_accuracy:.1f} %")
    lines += [f"{name.replace('_', ' ')} {100 * value:.1f} %" for name in content.calibrations
              if (value := getattr(trial, name)) is not None]  # fmt: skip
    lines += [f"{axis.label} = {axis.text(trial.params.get(axis.path))}" for axis in content.axes]
    return "\n".join([*lines, trial.note[:120]] if trial.note else lines)


def _trials(content: Content, role: str, trials: Sequence[Trial], label: str, **more: Any) -> Series:
    """In the plane of the trade-off."""
    x, y = accuracies(content, trials)
    return Series(role, x, y, label, tuple(hover(content, trial) for trial in trials), **more)


def tradeoff(content: Content) -> Figure:
    """Only full-length trials make the front; the shaded side of a floor is refused."""
    complete = content.in_state("complete")
    front = [content.trial(number) for number in content.pareto]
    found = [
        _trials(content, state, trials, f"{LABELS[state]} (not in the front)", size=5.0, opacity=0.6)
        for state in ("failed", "running", "pruned") if (trials := content.in_state(state))
    ]  # fmt: skip
    if front:
        x, y = accuracies(content, front)
        found.append(Series("best", x, y, "Pareto front", width=1.6, shape="until", tags=_numbers(content, front)))
    for feasible, label in ((True, "full length"), (False, "full length, below a floor")):
        if trials := [t for t in complete if bool(t.feasible) is feasible]:
            found.append(_trials(content, "complete", trials, label, size=7.0, fill="full" if feasible else "white"))
    for reference, label in REFERENCES.items():
        if trials := [t for t in complete if t.reference == reference]:
            found.append(_trials(content, reference, trials, label, size=11.0, fill="none"))
    if content.best is not None:
        best = content.trial(content.best)
        known = {"clean_accuracy": best.clean_error, "robust_accuracy": best.robust_error}  # of a calibration none is
        ends = [((100 * (known.get(name) or 0),) * 2,) for name in content.plane]
        label = f"best: trial {best.number}, 95 % of its dev images"
        found.append(_trials(content, "best", [best], label, size=9.0, x_errors=ends[0], y_errors=ends[1]))
    if content.unmodified:
        across, up = (100 * content.unmodified[name] for name in content.plane)
        names = [name.removesuffix("_accuracy").replace("_", " ") for name in content.plane]
        text = f"unmodified CLIP\n{names[0]} {across:.1f} %, {names[1]} {up:.1f} %"
        found.append(Series("unmodified", (across,), (up,), "unmodified CLIP", (text,), 12.0))
    scales, rules = [], []
    words = [name.replace("_", " ") for name in content.plane]
    what = (
        "Clean against robust accuracy" if content.plane == METRICS else f"{words[0].capitalize()} against {words[1]}"
    )
    for which, name in zip("xy", content.plane, strict=True):
        floor = 100 * content.floors[name] if name in content.floors else None
        scales.append(_scale(name, which, found, floor))
        if floor is not None:
            label = f"floor of {name.replace('_', ' ')}"
            rules.append(Rule(floor, which, label, "dash", refused=scales[-1].low))  # type: ignore[arg-type]
    return Figure(
        "tradeoff", f"{content.study}: trade-off (dev sets)",
        (Panel((*rules, *found), scales[0], scales[1], empty="" if content.in_state(*LABELS) else NOTHING),), 7.5, 5.6,
        "Trade-off",
        f"{what} of every trial's best epoch. Only full-length trials make the front; the shaded "
        "side of a floor is refused.",
    )  # fmt: skip


def _numbers(content: Content, front: Sequence[Trial]) -> tuple[tuple[str, bool], ...]:
    """The front's trials by number but for the best, which the legend names; crowded ones change sides."""
    found = []
    before, below = float("-inf"), False
    for trial in front:
        clean = 100 * (getattr(trial, content.plane[0]) or 0.0)
        named = trial.number != content.best
        if named:
            below = not below and clean - before < CROWDED
            before = clean
        found.append((str(trial.number) if named else "", named and below))
    return tuple(found)


def _scale(metric: str, which: str, marks: Sequence[Series], floor: float | None) -> Scale:
    """An axis that holds every point, its interval and the floor, with a margin."""
    values = [] if floor is None else [floor]
    for mark in marks:
        errors = getattr(mark, f"{which}_errors") or [(0.0, 0.0)] * len(mark.x)
        for value, (below, above) in zip(getattr(mark, which), errors, strict=True):
            values += [value - below, value + above]
    label = f"{metric.replace('_', ' ')} (%)"
    margin = (0.08 * (max(values) - min(values)) or 1.0) if values else 0.0
    return Scale(label, min(values) - margin, max(values) + margin) if values else Scale(label)


def progress(content: Content) -> Figure:
    """By number of finished trials, and by devices' time."""
    steps = content.progress
    places: list[tuple[list[float], Scale]] = [
        ([float(n + 1) for n in range(len(steps))], Scale("finished trials", 0.5, len(steps) + 0.5, whole=True)),
        ([step.device_seconds / 3600 for step in steps], Scale("device hours of finished trials")),
    ]
    panels = []
    for number, (at, scale) in enumerate(places):
        marks: list[Mark] = []
        for state in ("failed", "pruned", "complete"):
            trials = [(x, content.trial(step.trial)) for x, step in zip(at, steps, strict=True)]
            points = [(x, t) for x, t in trials if t.state == state and t.robust_accuracy is not None]
            if points:
                y = in_percent([content.value(trial) for _, trial in points])
                texts = tuple(hover(content, trial) for _, trial in points)
                marks.append(Series(state, tuple(x for x, _ in points), y, LABELS[state], texts, 5.0, opacity=0.75))
        known = [(x, step) for x, step in zip(at, steps, strict=True) if step.best is not None]
        if known:
            texts = tuple(f"best so far: trial {step.best}, {100 * content.value(step):.1f} %\nafter "
                          f"{step.device_seconds / 3600:.2f} device hours" for _, step in known)  # fmt: skip
            y = in_percent([content.value(step) for _, step in known])
            x = tuple(x for x, _ in known)
            marks.append(Series("best", x, y, "best so far", texts, width=2.0, shape="after"))
        marks += _unmodified(content, content.level)
        label = "" if number else f"{content.measure} (%)"
        panels.append(Panel(tuple(marks), scale, Scale(label), empty="" if steps else "No trial has finished yet."))
    return Figure(
        "progress", f"{content.study}: progress of the search (dev sets)", tuple(panels), 10.5, 4.3, "Progress",
        "The best trial known whenever one had finished.", columns=2, share_y=True,
    )  # fmt: skip


def _unmodified(content: Content, value: float) -> list[Rule]:
    return [Rule(100 * value, label="unmodified CLIP")] if content.unmodified else []


def curves(content: Content) -> Figure:
    """One line a trial; where it was stopped or failed, a marker."""
    shown = sorted((trial for trial in content.trials if trial.curve), key=lambda t: t.number == content.best)
    longest = max((trial.planned_epochs for trial in shown), default=1)
    panels = []
    for metric in (*METRICS[::-1], *content.calibrations):
        marks: list[Mark] = []
        for trial in shown:
            best = trial.number == content.best
            marks.append(Series(
                "best" if best else trial.state, tuple(e.epoch for e in trial.curve),
                in_percent([getattr(e, metric) for e in trial.curve]),
                f"best: trial {trial.number}" if best else LABELS[trial.state], (hover(content, trial),),
                7.0 if best else 6.0, 2.4 if best else 1.0, 1.0 if best else 0.65, ends=True,
            ))  # fmt: skip
        marks += _unmodified(content, (content.unmodified or {}).get(metric, 0.0))
        if metric in content.floors:
            marks.append(Rule(100 * content.floors[metric], label="floor", dash="dash"))
        panels.append(Panel(
            tuple(marks), Scale("epoch", 0.7, longest + 0.3, whole=True), Scale(f"{metric.replace('_', ' ')} (%)"),
            empty="" if shown else NOTHING,
        ))  # fmt: skip
    return Figure(
        "curves", f"{content.study}: learning curves (dev sets)", tuple(panels), 10.5, 4.8, "Learning curves",
        "Accuracy by epoch; the last marker says how the trial ended.", columns=2,
    )  # fmt: skip


def clock_of(content: Content) -> tuple[float, str, int]:
    """(ms in a unit, the unit's name, origin in ms) that suit the study's length."""
    origin = min([content.created_ms, *(bar.started_ms for bar in content.timeline)])
    span = max([bar.ended_ms for bar in content.timeline], default=origin) - origin
    unit, name = (3_600_000.0, "hours") if span > 3 * 3_600_000 else (60_000.0, "minutes")
    return unit, name, origin


def at_once(bars: Sequence[Bar]) -> list[tuple[int, int]]:
    """(ms, attempts under way from then on), by time."""
    changes = sorted([(bar.started_ms, 1) for bar in bars] + [(bar.ended_ms, -1) for bar in bars])
    found: dict[int, int] = {}
    running = 0
    for when, change in changes:
        running += change
        found[when] = running
    return list(found.items())


def timeline(content: Content) -> Figure:
    """A bar an attempt, on its trial's line; white ticks are reports. Below: attempts at once."""
    unit, name, origin = clock_of(content)
    span = max((bar.ended_ms - origin for bar in content.timeline), default=0) / unit
    several = len({bar.host for bar in content.timeline if bar.host}) > 1
    groups: dict[tuple[str, str], list[Bar]] = {}
    for bar in content.timeline:
        groups.setdefault(OUTCOMES.get(bar.outcome, ("lost", bar.outcome)), []).append(bar)
    marks: list[Mark] = []
    for (role, label), bars in groups.items():
        lengths = [(bar.ended_ms - bar.started_ms) / unit for bar in bars]
        named = [several and length > 0.06 * span for length in lengths]  # where the name fits
        hosts = [bar.host if fits else "" for bar, fits in zip(bars, named, strict=True)]
        marks.append(Bars(
            role, tuple(bar.trial for bar in bars), tuple(max(length, 0.003 * span) for length in lengths),  # visible
            tuple((bar.started_ms - origin) / unit for bar in bars), label, tuple(_attempt(bar, label) for bar in bars),
            tuple(hosts), BAR,
        ))  # fmt: skip
    x: list[float | None] = []
    y: list[float | None] = []
    for trial in content.trials:
        for epoch in trial.curve:
            x += [(epoch.timestamp_ms - origin) / unit] * 2 + [None]
            y += [trial.number - REPORT, trial.number + REPORT, None]
    marks.append(Series("report", tuple(x), tuple(y), width=0.9))
    steps = at_once(content.timeline)
    most, count = max((n for _, n in steps), default=0), max((t.number for t in content.trials), default=0) + 1
    load = Series("complete", tuple((when - origin) / unit for when, _ in steps), tuple(float(n) for _, n in steps),
                opacity=0.35, shape="after", area=True)  # fmt: skip
    panels = (
        Panel(tuple(marks), Scale(), Scale("trial", count - 0.4, -0.6, whole=True, grid=False),
              empty="" if steps else "No trial has begun yet."),
        Panel((load,), Scale(f"{name} since the study was created"), Scale("at once", 0, most + 0.6, whole=True)),
    )  # fmt: skip
    return Figure(
        "timeline", f"{content.study}: time line of the cluster", panels if steps else panels[:1], 10.5,
        min(14.0, 2.8 + 0.2 * count), "Time line",
        "One bar an attempt, coloured by how it ended; white ticks are reports, gaps are waiting. Below: how many ran "
        "at once.", heights=(max(3.0, 0.2 * count), 1.0) if steps else (), share_x=True,
    )  # fmt: skip


def _attempt(bar: Bar, label: str) -> str:
    minutes = (bar.ended_ms - bar.started_ms) / 60_000
    return f"trial {bar.trial}, attempt {bar.token}: {label}\n{bar.host} {bar.device}\n{minutes:.1f} min"
