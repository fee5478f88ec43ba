"""The time line of the cluster: one bar an attempt, and how many ran at once."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from study.report_content import Bar, Content
from study.report_style import OUTCOMES, new_figure, whole_numbers

__all__ = ["at_once", "clock_of", "timeline"]


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
    count = max((trial.number for trial in content.trials), default=0) + 1
    figure, grid = new_figure(
        10.5, min(14.0, 2.8 + 0.2 * count), 2, 1, sharex=True, gridspec_kw={"height_ratios": [max(3.0, 0.2 * count), 1]}
    )
    (axes,), (load,) = grid
    seen: set[str] = set()
    span = max((bar.ended_ms - origin for bar in content.timeline), default=0) / unit
    shortest = 0.003 * span  # to be seen at all
    hosts = {bar.host for bar in content.timeline if bar.host}
    for bar in content.timeline:
        colour, label = OUTCOMES.get(bar.outcome, ("#666666", bar.outcome))
        start, length = (bar.started_ms - origin) / unit, (bar.ended_ms - bar.started_ms) / unit
        axes.barh(
            bar.trial, max(length, shortest), left=start, height=0.74, color=colour,
            label=None if label in seen else label,
        )  # fmt: skip
        seen.add(label)
        if len(hosts) > 1 and length > 0.06 * span:  # where the name fits
            axes.annotate(bar.host, (start, bar.trial), textcoords="offset points", xytext=(3, 0), va="center",
                          fontsize=6, color="white", clip_on=True,
                          bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    for trial in content.trials:
        times = [(epoch.timestamp_ms - origin) / unit for epoch in trial.curve]
        axes.vlines(times, trial.number - 0.37, trial.number + 0.37, color="white", linewidth=0.9)
    axes.set(ylabel="trial", ylim=(count - 0.4, -0.6))
    whole_numbers(axes.yaxis)
    axes.grid(visible=False, axis="y")
    if seen:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    steps = at_once(content.timeline)
    if steps:
        load.fill_between([(when - origin) / unit for when, _ in steps], [n for _, n in steps], step="post", alpha=0.35,
                          color="#0072B2", linewidth=0)  # fmt: skip
    load.set(
        xlabel=f"{name} since the study was created",
        ylabel="at once",
        ylim=(0, max((n for _, n in steps), default=0) + 0.6),
    )
    whole_numbers(load.yaxis)
    figure.suptitle(f"{content.study}: time line of the cluster")
    return figure
