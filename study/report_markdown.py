"""A report as Markdown, beside its pictures."""

from __future__ import annotations

from collections.abc import Sequence

from study.console import percent
from study.report_content import Content

__all__ = ["markdown_of"]


def markdown_of(content: Content, table: Sequence[dict[str, object]], pictures: Sequence[tuple[str, str]]) -> str:
    """`table`: rows of `results.trial_table`; `pictures`: (file name, what it shows)."""
    lines = [
        f"# Study {content.study}",
        "",
        f"{len(content.trials)} of {content.budget} trials of {content.summary}",
        "",
    ]
    if not content.unmodified:
        return "\n".join([*lines, "The study has not begun yet.", ""])
    lines += ["| model | clean | robust |", "| --- | ---: | ---: |"]
    if content.best is not None:
        best = content.trial(content.best)
        lines.append(
            f"| trial {best.number} (best) | {percent(best.clean_accuracy)} | {percent(best.robust_accuracy)} |"
        )
    clean, robust = (percent(content.unmodified[f"{name}_accuracy"]) for name in ("clean", "robust"))
    lines += [f"| unmodified CLIP | {clean} | {robust} |", "", "Interactive: [report.html](report.html)", ""]
    for name, text in pictures:
        lines += [f"![{text}]({name})", ""]
    lines += ["## Trials", ""]
    lines.append(
        "| trial | state | epochs | clean | robust | " + " | ".join(a.path for a in content.axes) + " | note |"
    )
    lines.append("| ---: | --- | ---: | ---: | ---: | " + "---: | " * len(content.axes) + "--- |")
    for row in table:
        trial = content.trial(int(str(row["number"])))
        values = " | ".join(_plain(axis.text(trial.params.get(axis.path))) for axis in content.axes)
        lines.append(
            f"| {trial.number} | {trial.state} | {trial.epochs}/{trial.planned_epochs} | "
            f"{percent(trial.clean_accuracy)} | {percent(trial.robust_accuracy)} | {values} | {_plain(trial.note)} |"
        )
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Text that neither ends a table's cell nor is read as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
