"""Two heat maps, clean and robust accuracy, of a study that searched exactly two paths with choices.

A cell below a floor has a star.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from study.facts import METRICS, plain
from study.space import Dimension, known_paths, shown
from study.store import StudyRow, TrialRow

__all__ = ["draw_grid", "grid_cells", "marked_cells"]

Cell = tuple[int, int]  # row, column
CALIBRATION = ("method.scale_ratio", "method.logit_scale")


def draw_grid(study: StudyRow, trials: Sequence[TrialRow], path: Path) -> bool:
    """Draw the heat maps if the study has a grid and a trial; whether it did."""
    found = _grid_of(study)
    cells = grid_cells(found, trials) if found else {}
    if not found or not cells:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = (_choices(dimension) for dimension in found)
    size = (1.5 + 0.85 * len(columns), 1.7 + 0.7 * len(rows))
    figure = Figure(figsize=(2 * size[0], size[1]), layout="constrained")  # no pyplot: also outside the main thread
    FigureCanvasAgg(figure)
    both = figure.subplots(1, 2)
    for axes, metric in zip(both, METRICS, strict=True):
        _heat_map(axes, study, found, cells, metric)
    _frames_legend(figure, marked_cells(study, found))
    below = "" if all(cell["best_feasible"] for cell in cells.values()) else "; *: below a floor"
    figure.suptitle(f"{study.name}: accuracy on the dev sets (%){below}")
    figure.savefig(path, dpi=150)
    return True


def _grid_of(study: StudyRow) -> tuple[Dimension, Dimension] | None:
    dimensions = study.spec.dimensions()
    if len(dimensions) != 2 or not all(isinstance(d.distribution, CategoricalDistribution) for d in dimensions):
        return None
    return dimensions[0], dimensions[1]


def _choices(dimension: Dimension) -> list[Any]:
    choices = list(dict.fromkeys(dimension.distribution.choices))
    return sorted(choices) if all(isinstance(value, int | float) for value in choices) else choices


def grid_cells(found: tuple[Dimension, Dimension], trials: Sequence[TrialRow]) -> dict[Cell, dict[str, Any]]:
    """The last record of every cell's full-length trial; of several, the first."""
    rows, columns = (_choices(dimension) for dimension in found)
    cells: dict[Cell, dict[str, Any]] = {}
    for trial in trials:
        if trial.state == "complete" and trial.last:
            cell = rows.index(trial.params[found[0].path]), columns.index(trial.params[found[1].path])
            cells.setdefault(cell, trial.last)
    return cells


def marked_cells(study: StudyRow, found: tuple[Dimension, Dimension]) -> list[tuple[str, Cell]]:
    """Cells with a name: the fields' defaults, which are the paper's, and AGFT without calibration (1 and 1)."""
    known = known_paths(study.spec.method.name)
    if any(d.path not in known for d in found):
        return []  # methods against something: none of the cells is a paper's
    places = [
        ("the paper's setting", [plain(d, known[d.path][0].get_default(call_default_factory=True)) for d in found])
    ]
    if {d.path for d in found} == set(CALIBRATION) and all(d.wrapper in ("", "of_model") for d in found):
        places.append(("no calibration (1 and 1)", [1.0, 1.0]))
    return [
        (name, (_choices(found[0]).index(values[0]), _choices(found[1]).index(values[1])))
        for name, values in places
        if all(value in _choices(d) for value, d in zip(values, found, strict=True))
    ]


def _heat_map(
    axes: Any, study: StudyRow, found: tuple[Dimension, Dimension], cells: dict[Cell, dict[str, Any]], metric: str
) -> None:
    rows, columns = (_choices(dimension) for dimension in found)
    values = [[100 * cells[r, c][f"best_{metric}"] if (r, c) in cells else float("nan") for c in range(len(columns))]
              for r in range(len(rows))]  # fmt: skip
    image = axes.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    axes.figure.colorbar(image, ax=axes)
    low, high = image.get_clim()
    for row in range(len(rows)):
        for column in range(len(columns)):
            value = values[row][column]
            text = "-" if value != value else f"{value:.1f}" + ("" if cells[row, column]["best_feasible"] else "*")
            dark = value == value and value < (low + high) / 2
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    for place, (_, (row, column)) in enumerate(marked_cells(study, found)):
        axes.add_patch(_frame(place, (column - 0.46, row - 0.44), 0.92, 0.88))
    axes.set(
        xticks=range(len(columns)), xticklabels=[shown(found[1].path, value) for value in columns],
        yticks=range(len(rows)), yticklabels=[shown(found[0].path, value) for value in rows],
        xlabel=_name(found[1]), ylabel=_name(found[0]), title=metric.replace("_", " "),
    )  # fmt: skip


def _frame(place: int, corner: tuple[float, float], width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        corner, width, height, fill=False, edgecolor="#D55E00", linewidth=2.5, linestyle=("-", ":")[place % 2]
    )


def _frames_legend(figure: Any, marked: Sequence[tuple[str, Cell]]) -> None:
    frames = [_frame(place, (0, 0), 1, 1) for place in range(len(marked))]
    if frames:
        names = [name for name, _ in marked]
        figure.legend(frames, names, loc="outside lower center", ncols=len(frames), frameon=False)


def _name(dimension: Dimension) -> str:
    relative = {"of_model": " (x the model's own)", "of_eps": " (x eps)"}.get(dimension.wrapper, "")
    return f"{dimension.path.rpartition('.')[2].replace('_', ' ')}{relative}"
