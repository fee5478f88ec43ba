"""The figures of a report for the browser: plain plotly.js traces and layouts, built of the same content.

All text that a user or a machine wrote is escaped: plotly reads HTML in labels.
"""

from __future__ import annotations

from study.report_content import Content
from study.report_plotly_results import curves, progress, tradeoff
from study.report_plotly_space import importance_bars, parallel, slices, timeline
from study.report_plotly_style import Plot

__all__ = ["FIGURES", "figures"]

FIGURES = {
    "tradeoff": ("Trade-off", "Clean against robust accuracy of every trial's best epoch. Only full-length trials make "
                 "the front; the shaded side of a floor is refused."),
    "progress": ("Progress", "The best trial known whenever one had finished."),
    "curves": ("Learning curves", "Accuracy by epoch; the last marker says how the trial ended."),
    "parallel": ("Parallel coordinates", "Full-length trials from their parameters to their accuracies. Drag along an "
                 "axis to select, drag a name to reorder; `not set`: a conditional parameter that the trial lacks."),
    "slices": ("Slices", "Full-length trials by each parameter; colour is the order of trials. Orange rings were the "
               "best when they finished, open circles are below a floor, the star is the best."),
    "importances": ("Importances", "Share of an accuracy's variance over the search space (total effect of a random "
                    "forest). Whiskers: 5 to 95 % over resampled trials; dashed: what a column of random numbers "
                    "gets."),
    "timeline": ("Time line", "One bar an attempt, coloured by how it ended; gaps are waiting."),
}  # fmt: skip


def figures(content: Content) -> dict[str, Plot]:
    """Every figure by its name in FIGURES."""
    makers = (tradeoff, progress, curves, parallel, slices, importance_bars, timeline)
    return {name: make(content) for name, make in zip(FIGURES, makers, strict=True)}
