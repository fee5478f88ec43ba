"""A study's report, in one folder: pictures, Markdown, one self-contained interactive page, and typed JSON."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from study.console import percent
from study.figure_style import LABELS, STATES
from study.report.content import Content, content_of
from study.report.png import draw_grid
from study.report.results import curves, progress, tradeoff
from study.report.space import importance_bars, parallel, slices, timeline
from study.report.style import Plot
from study.results.facts import Trial
from study.results.importance import Importances
from study.results.ranking import trial_table
from study.store.rows import StudyRow, TrialRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    from study.report.png import markdown_of

    rows = trial_table(trials, study.goal) if study.goal else []
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
    from study.report.png import curves, importance_bars, parallel, progress, slices, timeline, tradeoff

    return tradeoff, progress, curves, parallel, slices, importance_bars, timeline


def _write(path: Path, text: str) -> Path:
    """At once: who reads the folder while it is drawn again finds the old file or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    return path


# The figures of a report for the browser: plain plotly.js traces and layouts, built of the same content.
#
# All text that a user or a machine wrote is escaped: plotly reads HTML in labels.

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


# A report as one HTML file that needs no network: plotly.js, data, style and script are inside.
#
# Everything that a user or a machine wrote is escaped, in the page and in the data.

PAGE = Path(__file__).with_name("web")


def html_of(content: Content) -> str:
    """The whole page."""
    return Template(_file("report.html")).substitute(
        title=escape(content.study),
        summary=escape(content.summary),
        css=_file("report.css"),
        js=_file("report.js"),
        cards=_cards(content),
        nav="".join(f'<a href="#{name}-section">{title}</a>' for name, (title, _) in FIGURES.items())
        + '<a href="#table">Trials</a>' + _link(content, "study", "MLflow run"),
        figures="\n".join(
            f'<section id="{name}-section"><h2>{title}</h2><p>{text}</p><div class="scroll">'
            f'<div class="plot" id="{name}"></div></div></section>'
            for name, (title, text) in FIGURES.items()
        ),
        states="".join(f'<option value="{value}">{label}</option>' for value, label in _states(content)),
        headings=_headings(content),
        rows="\n".join(_row(content, trial) for trial in _ordered(content)),
        footer=_footer(content),
        data=_script_json({"figures": figures(content)}),
        plotly=_plotly(),
    )  # fmt: skip


@functools.cache
def _file(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    assert "</script" not in source, "this plotly.js cannot stand inside a page"
    return source


def _script_json(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, whatever the strings hold."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _link(content: Content, key: str, text: str) -> str:
    address = content.links.get(key)
    if not address or not address.startswith(("http://", "https://")):
        return ""
    return f'<a href="{escape(address)}" target="_blank" rel="noopener">{escape(text)}</a>'


def _cards(content: Content) -> str:
    count = {state: sum(t.state == state for t in content.trials) for state in LABELS}
    done = ", ".join(f"{number} {LABELS[state]}" for state, number in count.items() if number)
    cards = [
        ("", f"{len(content.trials)} of {content.budget} trials", f"{escape(content.state)}; {done or 'none yet'}")
    ]
    if content.best is not None:
        best = content.trial(content.best)
        robust, clean = percent(best.robust_accuracy), percent(best.clean_accuracy)
        cards.insert(0, ("best", f"{robust} robust", f"trial {best.number}, epoch {best.best_epoch}: {clean} clean"))
    elif content.trials:
        cards.insert(0, ("best", "none yet", "no full-length trial reaches every floor"))
    if content.unmodified:
        robust, clean = (percent(content.unmodified[f"{name}_accuracy"]) for name in ("robust", "clean"))
        cards.append(("", f"{robust} robust", f"unmodified CLIP: {clean} clean"))
    cards.append(("", f"{content.device_seconds / 3600:.2f} h", "device hours of all attempts"))
    cells = "".join(f'<div class="card {kind}"><b>{value}</b><span>{text}</span></div>' for kind, value, text in cards)
    return f'<div class="cards">{cells}</div>'


def _states(content: Content) -> list[tuple[str, str]]:
    return [("", "every state"), *((s, LABELS[s]) for s in LABELS if any(t.state == s for t in content.trials))]


def _headings(content: Content) -> str:
    names = [("trial", ""), ("state", "text"), ("epochs", ""), ("robust %", ""), ("clean %", "")]
    names += [(axis.label, "") for axis in content.axes]
    names += [("device min", ""), ("attempts", ""), ("note", "text")]
    return "".join(f'<th class="{kind}" scope="col">{escape(name)}</th>' for name, kind in names)


def _ordered(content: Content) -> list[Trial]:
    """Full-length trials first, the best on top; the reader sorts as she likes."""

    def key(trial: Trial) -> tuple[Any, ...]:
        value = content.value(trial)
        complete = trial.state == "complete"
        return (not complete, complete and not trial.feasible, -value if complete else 0.0, trial.number)

    return sorted(content.trials, key=key)


def _row(content: Content, trial: Trial) -> str:
    colour = STATES[trial.state][0]
    run = _link(content, str(trial.number), str(trial.number)) or str(trial.number)
    marks = [{"paper": "the paper's defaults"}.get(trial.reference, trial.reference)]
    marks += ["below a floor" if trial.state == "complete" and trial.feasible is False else "", trial.note]
    cells = [
        _cell(run, trial.number),
        _cell(f'<span class="dot" style="background:{colour}"></span>{LABELS[trial.state]}', trial.state, "text"),
        _cell(f"{trial.epochs}/{trial.planned_epochs}", trial.epochs),
        *(_cell("-" if v is None else f"{100 * v:.1f}", v) for v in (trial.robust_accuracy, trial.clean_accuracy)),
        *(
            _cell(escape(axis.text(trial.params.get(axis.path))), trial.params.get(axis.path))
            for axis in content.axes
        ),
        _cell(f"{trial.device_seconds / 60:.1f}", trial.device_seconds),
        _cell(str(len(trial.attempts)), len(trial.attempts)),
        _cell(escape("; ".join(mark for mark in marks if mark)), None, "text note"),
    ]  # fmt: skip
    best = ' class="best"' if trial.number == content.best else ""
    return f'<tr data-state="{trial.state}"{best}>{"".join(cells)}</tr>'


def _cell(html: str, value: Any, kind: str = "") -> str:
    sort = "" if value is None else f' data-value="{escape(str(value))}"'
    return f'<td class="{kind}"{sort}>{html}</td>' if kind else f"<td{sort}>{html}</td>"


def _footer(content: Content) -> str:
    code = content.provenance.get("code") or {}
    revision = (
        f"; code {code['revision'][:12]}{' with changes' if code.get('dirty') else ''}" if code.get("revision") else ""
    )
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(content.drawn_ms / 1000))
    return escape(f"Drawn {when} by agft report {content.study}{revision}.")
