"""A study's report, in one folder: pictures, Markdown, one self-contained interactive page, and typed JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.grid_figure import draw_grid
from study.importance import Importances
from study.report_content import Content, content_of
from study.results import trial_table
from study.rows import StudyRow, TrialRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "report_json", "write_report"]

PICTURES = {
    "tradeoff.png": "clean against robust accuracy",
    "progress.png": "progress of the search",
    "curves.png": "learning curves",
    "parallel.png": "parallel coordinates",
    "slices.png": "slices",
    "importances.png": "parameter importances",
    "timeline.png": "time line of the cluster",
}
GRID = ("grid.png", "grid")


def write_report(
    study: StudyRow,
    trials: Sequence[TrialRow],
    folder: Path,
    *,
    links: Mapping[str, str] | None = None,
    known: Sequence[Importances] | None = None,
) -> Path:
    """Write `report.md`, `report.html`, `report.json` and the pictures into `folder`; returns the Markdown's path.

    A study that searched exactly two paths, both with choices, gets `grid.png` as well. `links` and `known` are those
    of `content_of`; links that an earlier report had there are kept. Safe in any thread: nothing here uses pyplot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _links_of_before(folder, study) if links is None else links
    content = content_of(study, trials, links=found, known=known)
    pictures = []
    for (name, text), draw in zip(PICTURES.items(), _drawers(), strict=True):
        if (content.axes or name not in ("parallel.png", "slices.png", "importances.png")) and content.trials:
            draw(content).savefig(folder / name, dpi=150)
            pictures.append((name, text))
    if draw_grid(study, trials, folder / GRID[0]):
        pictures.append(GRID)
    from study.report_html import html_of
    from study.report_markdown import markdown_of

    rows = trial_table(trials, study.spec.goal.resolve(study.baseline)) if study.baseline else []
    _write(folder / "report.json", json.dumps(content.json(), indent=2))
    _write(folder / "report.html", html_of(content))
    return _write(folder / "report.md", markdown_of(content, rows, pictures))


def _links_of_before(folder: Path, study: StudyRow) -> dict[str, str]:
    """Addresses in MLflow that an earlier report of this very study had there: a driver knows them, others do not."""
    path = folder / "report.json"
    if not path.is_file():
        return {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        same = (before["study"], before["created_ms"]) == (study.name, study.created_ms)
        return {str(name): str(page) for name, page in before["links"].items()} if same else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # somebody else's file, which is written over


def report_json(study: StudyRow, trials: Sequence[TrialRow]) -> dict[str, Any]:
    """What `report.json` holds."""
    return content_of(study, trials).json()


def _drawers() -> tuple[Callable[[Content], Figure], ...]:
    from study.report_figures import curves, progress, tradeoff
    from study.report_space import importance_bars, parallel, slices
    from study.report_timeline import timeline

    return tradeoff, progress, curves, parallel, slices, importance_bars, timeline


def _write(path: Path, text: str) -> Path:
    """At once: who reads the folder while it is drawn again finds the old file or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    return path
