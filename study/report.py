"""A study's report: table, figures, and the same as Markdown, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.console import percent
from study.grid_figure import draw_grid
from study.results import best_trial, trial_table
from study.space import shown
from study.store import StudyRow, TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_report"]

STATE_STYLE = {  # colour-blind safe (Okabe and Ito), and another marker each
    "complete": ("#0072B2", "o"),
    "pruned": ("#E69F00", "v"),
    "failed": ("#D55E00", "x"),
    "running": ("#999999", "s"),
}
STATE_LABEL = {"complete": "full length", "pruned": "stopped early", "failed": "failed", "running": "unfinished"}


def write_report(study: StudyRow, trials: Sequence[TrialRow], folder: Path) -> Path:
    """Write `report.md`, `curves.png` and `tradeoff.png` into `folder`; returns the Markdown's path.

    A study that searched exactly two paths, both with choices, gets `grid.png` as well.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    _curves(study, trials, folder / "curves.png")
    _tradeoff(study, trials, folder / "tradeoff.png")
    has_grid = draw_grid(study, trials, folder / "grid.png")
    path = folder / "report.md"
    path.write_text(_markdown(study, trials, has_grid=has_grid), encoding="utf-8")
    return path


def _axes(width: float) -> tuple[Any, Axes]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, 4.5), constrained_layout=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150)
    plt.close(figure)


def _curves(study: StudyRow, trials: Sequence[TrialRow], path: Path) -> None:
    """Robust accuracy by epoch, a line a trial."""
    figure, axes = _axes(8)
    seen: set[str] = set()
    for trial in trials:
        if not trial.epochs:
            continue
        colour, marker = STATE_STYLE[trial.state]
        epochs = [record["epoch"] for record in trial.epochs]
        values = [100 * record["robust_accuracy"] for record in trial.epochs]
        label = None if trial.state in seen else STATE_LABEL[trial.state]
        seen.add(trial.state)
        axes.plot(epochs, values, color=colour, marker=marker, linewidth=1.3, markersize=5, alpha=0.8, label=label)
        axes.annotate(f" {trial.number}", (epochs[-1], values[-1]), fontsize=8, color=colour, va="center")
    if study.baseline:
        clip = 100 * study.baseline["robust_accuracy"]
        axes.axhline(clip, color="black", linestyle=":", linewidth=1.2, label="unmodified CLIP")
    axes.set(
        xlabel="epoch", ylabel="robust accuracy on the dev sets (%)", title=f"{study.name}: every trial by epoch",
        xticks=range(1, study.spec.train.epochs + 1), ylim=(0, None),
    )  # fmt: skip
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    _save(figure, path)


def _tradeoff(study: StudyRow, trials: Sequence[TrialRow], path: Path) -> None:
    """Clean against robust accuracy of every trial's best epoch; floors as lines."""
    figure, axes = _axes(6)
    for state, (colour, marker) in STATE_STYLE.items():
        rows = [trial.last for trial in trials if trial.state == state and trial.last]
        if rows:
            axes.scatter(
                [100 * row["best_clean_accuracy"] for row in rows],
                [100 * row["best_robust_accuracy"] for row in rows],
                color=colour, marker=marker, s=45, label=STATE_LABEL[state],
            )  # fmt: skip
    for trial in trials:
        if trial.last:
            place = (100 * trial.last["best_clean_accuracy"], 100 * trial.last["best_robust_accuracy"])
            axes.annotate(str(trial.number), place, textcoords="offset points", xytext=(5, 4), fontsize=8)
    if study.baseline:
        clean, robust = (100 * study.baseline[name] for name in ("clean_accuracy", "robust_accuracy"))
        axes.scatter([clean], [robust], color="black", marker="*", s=110, label="unmodified CLIP", zorder=3)
        for name, floor in study.spec.goal.resolve(study.baseline).at_least.items():
            draw = axes.axvline if name == "clean_accuracy" else axes.axhline
            draw(100 * floor, color="black", linestyle="--", linewidth=1, label=f"floor of {name.replace('_', ' ')}")
    axes.set(
        xlabel="clean accuracy (%)", ylabel="robust accuracy (%)", title=f"{study.name}: trade-off on the dev sets"
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _markdown(study: StudyRow, trials: Sequence[TrialRow], *, has_grid: bool) -> str:
    spec = study.spec
    lines = [f"# Study {spec.name}", ""]
    select = spec.evaluate.select
    lines += [
        f"{len(trials)} of {spec.budget.trials} trials of `{spec.method.name}` on `{spec.model.arch}`, fine-tuned on "
        f"`{spec.data.train}`. Selection: {spec.goal.metric.replace('_', ' ')} on {', '.join(spec.data.dev)}, protocol "
        f"{select.protocol}, {select.attack.name} with {select.attack.steps} steps, eps "
        f"{', '.join(f'{eps * 255:g}/255' for eps in select.attack.eps)}, seed {spec.seed}.",
        "",
    ]
    if not study.baseline:
        return "\n".join([*lines, "The study has not begun yet.", ""])
    goal = spec.goal.resolve(study.baseline)
    best = best_trial(trials, goal)
    lines += ["| model | clean | robust |", "| --- | ---: | ---: |"]
    if best and best.last:
        clean, robust = (percent(best.last[f"best_{name}_accuracy"]) for name in ("clean", "robust"))
        lines.append(f"| trial {best.number} (best) | {clean} | {robust} |")
    clean, robust = (percent(study.baseline[f"{name}_accuracy"]) for name in ("clean", "robust"))
    lines += [f"| unmodified CLIP | {clean} | {robust} |", ""]
    figures = ["![curves](curves.png)", "![trade-off](tradeoff.png)", *["![grid](grid.png)"] * has_grid]
    lines += [*(line for figure in figures for line in (figure, "")), "## Trials", ""]
    paths = list(spec.search)
    lines.append("| trial | state | epochs | clean | robust | " + " | ".join(paths) + " | note |")
    lines.append("| ---: | --- | ---: | ---: | ---: | " + "---: | " * len(paths) + "--- |")
    for row in trial_table(trials, goal):
        values = " | ".join(shown(path, row["params"].get(path, "-")) for path in paths)
        note = (row["failure_kind"] or row["reason"] or "").splitlines()
        lines.append(
            f"| {row['number']} | {row['state']} | {row['epochs']}/{spec.train.epochs} | "
            f"{percent(row['clean_accuracy'])} | {percent(row['robust_accuracy'])} | {values} | "
            f"{note[-1] if note else ''} |"
        )
    return "\n".join([*lines, ""])
