"""A study's full-length trials as a table for papers, each row traceable to the report's JSON and to the weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from study import latex
from study.report.content import Content
from study.results.facts import METRICS, Trial

SHOWN = 10  # trials


def latex_of(content: Content, facts: Path) -> str:
    """The best full-length trials and the unmodified CLIP. `facts`: the `report.json` of this very content."""
    own = hashlib.sha256(facts.read_bytes()).hexdigest()
    place = {trial.number: index for index, trial in enumerate(content.trials)}
    complete = content.in_state("complete")
    best = sorted(complete, key=lambda t: (not t.feasible, -content.value(t), t.number))[:SHOWN]
    rows, sources, also = [], [], content.calibrations
    for trial in best:
        accuracies = [_accuracy(trial, name) for name in METRICS] + [_shown(getattr(trial, name)) for name in also]
        rows.append(
            [_name(content, trial), *accuracies, *(axis.text(trial.params.get(axis.path)) for axis in content.axes)]
        )
        weights = f"; weights sha256:{trial.checkpoint_sha256}" if trial.checkpoint_sha256 else ""
        sources.append(f"{facts.name}#/trials/{place[trial.number]}{weights}")
    if content.unmodified:
        found = [f"{100 * content.unmodified[name]:.1f}" for name in (*METRICS, *also)]
        rows.append(["unmodified CLIP", *found, *[""] * len(content.axes)])
        sources.append(f"{facts.name}#/unmodified")
    columns = ["clean_accuracy with clean_error", "robust_accuracy with robust_error", *also]
    columns += [f"params.{axis.path}" for axis in content.axes]
    caption = (
        f"Study {content.study}: full-length trials, best first. Accuracies (%) on the dev sets, which the search "
    )
    caption += "has used; ±: 95 % of the number of images alone. " + content.summary
    about = [f"agft report {content.study} --latex", f"{facts.name} sha256:{own}"]
    about += [f"columns from the second on: {', '.join(columns)}"]
    head = [
        "trial",
        "clean",
        "robust",
        *(name.replace("_", " ") for name in also),
        *(axis.label for axis in content.axes),
    ]
    return latex.table(head, rows, caption=caption, label=f"tab:{content.study}", about=about, sources=sources)


def _name(content: Content, trial: Trial) -> str:
    if trial.number == content.best:
        return f"{trial.number} (best)"
    return str(trial.number) if trial.feasible else f"{trial.number} (below a floor)"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _accuracy(trial: Trial, name: str) -> str:
    value, error = getattr(trial, name), getattr(trial, name.replace("accuracy", "error"))
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")
