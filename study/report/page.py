"""A study's report, in one folder: pictures, Markdown, one self-contained interactive page, and typed JSON."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from study.console import percent
from study.figures import interactive, static
from study.figures.content import Figure
from study.figures.style import LABELS, STATES
from study.markdown import escaped
from study.report.content import Content, content_of
from study.report.paper import latex_of
from study.report.promotions import as_html, as_markdown
from study.report.results import curves, progress, timeline, tradeoff
from study.report.space import NO_AXES, grid, importance_bars, parallel, slices
from study.results.facts import Trial
from study.results.importance import Importances
from study.results.ranking import trial_table
from study.store.rows import StudyRow, TrialRow

PAGE = Path(__file__).with_name("web")


def figures(content: Content) -> list[Figure]:
    """Every figure of a report, in the page's order."""
    makers = (tradeoff, progress, curves, parallel, slices, importance_bars, grid, timeline)
    return [figure for make in makers if (figure := make(content)) is not None]


def write_report(
    study: StudyRow,
    trials: Sequence[TrialRow],
    folder: Path,
    *,
    links: Mapping[str, str] | None = None,
    known: Sequence[Importances] | None = None,
    papers: bool = True,
    promotions: Iterable[Mapping[str, Any]] = (),
    audit: str = "",
) -> Path:
    """Write `report.md`, `report.html`, `report.json` and the figures into `folder`; returns the Markdown's path.

    A figure is a PNG, with `papers` a PDF as well, and the best trials are a table in `trials.tex`. A study that
    searched exactly two paths, both with choices, gets `grid` as well. `links`, `known`, `promotions` and `audit` are
    those of `content_of`; links of an earlier report are kept.
    Safe in any thread: nothing here uses pyplot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _links_of_before(folder, study) if links is None else links
    content = content_of(study, trials, links=found, known=known, promotions=promotions, audit=audit)
    drawn = [figure for figure in figures(content) if content.trials and figure.empty != NO_AXES]
    for figure in drawn:
        static.write(figure, folder, paper=papers)
    rows = trial_table(trials, study.goal) if study.goal else []
    facts = _write(folder / "report.json", json.dumps(content.json(), indent=2))
    if papers:
        _write(folder / "trials.tex", latex_of(content, facts))
    _write(folder / "report.html", html_of(content))
    return _write(folder / "report.md", markdown_of(content, rows, drawn))


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


def report_json(
    study: StudyRow, trials: Sequence[TrialRow], *, promotions: Iterable[Mapping[str, Any]] = (), audit: str = ""
) -> dict[str, Any]:
    """What `report.json` holds."""
    return content_of(study, trials, promotions=promotions, audit=audit).json()


def _write(path: Path, text: str) -> Path:
    """At once: who reads the folder while it is drawn again finds the old file or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    return path


# A report as Markdown, beside its pictures.


def markdown_of(content: Content, table: Sequence[dict[str, object]], pictures: Sequence[Figure]) -> str:
    """`table`: rows of `results.trial_table`; `pictures`: the figures that were drawn."""
    lines = [
        f"# Study {content.study}",
        "",
        f"{len(content.trials)} of {content.budget} trials of {escaped(content.summary)}",
        "",
    ]
    if not content.unmodified:
        return "\n".join([*lines, "The study has not begun yet.", ""])
    also = content.calibrations
    heads = "".join(f" {name.replace('_', ' ')} |" for name in also)
    lines += [f"| model | clean | robust |{heads}", f"| --- | ---: | ---: |{' ---: |' * len(also)}"]
    if content.best is not None:
        best = content.trial(content.best)
        lines.append(
            f"| trial {best.number} (best) | {percent(best.clean_accuracy)} | {percent(best.robust_accuracy)} |"
            + "".join(f" {percent(getattr(best, name))} |" for name in also)
        )
    clean, robust = (percent(content.unmodified[f"{name}_accuracy"]) for name in ("clean", "robust"))
    more = "".join(f" {percent(content.unmodified[name])} |" for name in also)
    lines += [f"| unmodified CLIP | {clean} | {robust} |{more}", "", "Interactive: [report.html](report.html)", ""]
    if content.audit:
        lines += [f"Audit: {escaped(content.audit)}", ""]
    for figure in pictures:
        lines += [f"![{figure.heading}]({figure.name}.png)", ""]
    lines += [*as_markdown(content.promotions), "## Trials", ""]
    lines.append(
        f"| trial | state | epochs | clean | robust |{heads} "
        + " | ".join(escaped(a.path) for a in content.axes)
        + " | note |"
    )
    lines.append("| ---: | --- | ---: | ---: | ---: | " + "---: | " * (len(also) + len(content.axes)) + "--- |")
    for row in table:
        trial = content.trial(int(str(row["number"])))
        values = " | ".join(escaped(axis.text(trial.params.get(axis.path))) for axis in content.axes)
        lines.append(
            f"| {trial.number} | {trial.state} | {trial.epochs}/{trial.planned_epochs} | "
            f"{percent(trial.clean_accuracy)} | {percent(trial.robust_accuracy)} | "
            + "".join(f"{percent(getattr(trial, name))} | " for name in also)
            + f"{values} | {escaped(trial.note)} |"
        )
    return "\n".join([*lines, ""])


# A report as one HTML file that needs no network: plotly.js, data, style and script are inside.
#
# Everything that a user or a machine wrote is escaped, in the page and in the data.


def html_of(
    content: Content, *, parts: Mapping[str, Any] | None = None, live: tuple[str, str, str] = ("", "", "null")
) -> str:
    """The whole page. `parts`: those of `parts_of`, where they are known. `live`: markup, script and data (as
    `script_json`) that a page that renews itself has besides."""
    parts = parts or parts_of(content)
    controls, more, told = live
    shown = {name: parts[name] for name in ("cards", "nav", "promotions", "states", "headings", "rows", "footer")}
    return Template(_file("report.html")).substitute(
        shown,
        title=escape(content.study),
        summary=escape(content.summary),
        css=_file("report.css"),
        js=_file("report.js") + more,
        controls=controls,
        figures="\n".join(parts["sections"].values()),
        data=script_json({"figures": parts["figures"]}),
        live=told,
        plotly=_plotly(),
    )


def parts_of(content: Content) -> dict[str, Any]:
    """What of the page changes while a study goes on: markup by its place, sections and plots by the figure's name."""
    every = figures(content)
    nav = "".join(f'<a href="#{figure.name}-section">{figure.heading}</a>' for figure in every)
    nav += '<a href="#promotions">Promotions</a>' if content.promotions else ""
    return {
        "cards": _cards(content),
        "nav": nav + '<a href="#table">Trials</a>' + _link(content, "study", "MLflow run"),
        "sections": {figure.name: _section(figure) for figure in every},
        "figures": {figure.name: interactive.plot(figure) for figure in every if not figure.empty},
        "promotions": as_html(content.promotions),
        "states": "".join(f'<option value="{value}">{label}</option>' for value, label in _states(content)),
        "headings": _headings(content),
        "rows": "\n".join(_row(content, trial) for trial in _ordered(content)),
        "footer": _footer(content),
    }


BRIEF = 10  # trials that a notebook shows


def brief_html(content: Content) -> str:
    """State, best and the first trials of the page's table, for a notebook."""
    count, first = len(content.trials), _ordered(content)[:BRIEF]
    rows = "".join(_row(content, trial) for trial in first)
    more = f"{count - BRIEF} more: <code>study.dataframe()</code>" if count > BRIEF else ""
    return (
        f"<div><b>Study {escape(content.study)}</b><p>{escape(content.summary)}</p>{_cards(content)}<table><thead><tr>"
        f"{_headings(content)}</tr></thead><tbody>{rows}</tbody></table><p>{more}</p></div>"
    )


def _section(figure: Figure) -> str:
    """A figure's place on the page; of one without anything to show, the sentence that says so."""
    shown = f'<p class="none">{escape(figure.empty)}</p>'
    if not figure.empty:
        shown = f'<div class="scroll"><div class="plot" id="{figure.name}"></div></div>'
    head = f"<h2>{escape(figure.heading)}</h2><p>{escape(figure.caption)}</p>"
    return f'<section id="{figure.name}-section">{head}{shown}</section>'


@functools.cache
def _file(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    assert "</script" not in source, "this plotly.js cannot stand inside a page"
    return source


def script_json(value: Any) -> str:
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
        more = "".join(f", {name.replace('_', ' ')} {percent(getattr(best, name))}" for name in content.calibrations)
        said = f"trial {best.number}, epoch {best.best_epoch}: {clean} clean{more}"
        cards.insert(0, ("best", f"{robust} robust", said))
    elif content.trials:
        cards.insert(0, ("best", "none yet", "no full-length trial reaches every floor"))
    if content.unmodified:
        robust, clean = (percent(content.unmodified[f"{name}_accuracy"]) for name in ("robust", "clean"))
        more = "".join(
            f", {name.replace('_', ' ')} {percent(content.unmodified[name])}" for name in content.calibrations
        )
        cards.append(("", f"{robust} robust", f"unmodified CLIP: {clean} clean{more}"))
    cards.append(("", f"{content.device_seconds / 3600:.2f} h", "device hours of all attempts"))
    cells = "".join(f'<div class="card {kind}"><b>{value}</b><span>{text}</span></div>' for kind, value, text in cards)
    return f'<div class="cards">{cells}</div>'


def _states(content: Content) -> list[tuple[str, str]]:
    return [("", "every state"), *((s, LABELS[s]) for s in LABELS if any(t.state == s for t in content.trials))]


def _headings(content: Content) -> str:
    names = [("trial", ""), ("state", "text"), ("epochs", ""), ("robust %", ""), ("clean %", "")]
    names += [(f"{name.replace('_', ' ')} %", "") for name in content.calibrations]
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
    colour = STATES[trial.state].colour
    run = _link(content, str(trial.number), str(trial.number)) or str(trial.number)
    marks = [{"paper": "the paper's defaults"}.get(trial.reference, trial.reference)]
    marks += ["below a floor" if trial.state == "complete" and trial.feasible is False else "", trial.note]
    measured = [getattr(trial, name) for name in ("robust_accuracy", "clean_accuracy", *content.calibrations)]
    cells = [
        _cell(run, trial.number),
        _cell(f'<span class="dot" style="background:{colour}"></span>{LABELS[trial.state]}', trial.state, "text"),
        _cell(f"{trial.epochs}/{trial.planned_epochs}", trial.epochs),
        *(_cell("-" if v is None else f"{100 * v:.1f}", v) for v in measured),
        *(
            _cell(escape(axis.text(trial.params.get(axis.path))), trial.params.get(axis.path))
            for axis in content.axes
        ),
        _cell(f"{trial.device_seconds / 60:.1f}", trial.device_seconds),
        _cell(str(len(trial.attempts)), len(trial.attempts)),
        _cell(escape("; ".join(mark for mark in marks if mark)), None, "text note"),
    ]  # fmt: skip
    best = ' class="best"' if trial.number == content.best else ""
    return f'<tr data-trial="{trial.number}" data-state="{trial.state}"{best}>{"".join(cells)}</tr>'


def _cell(html: str, value: Any, kind: str = "") -> str:
    sort = "" if value is None else f' data-value="{escape(str(value))}"'
    return f'<td class="{kind}"{sort}>{html}</td>' if kind else f"<td{sort}>{html}</td>"


def _footer(content: Content) -> str:
    code = content.provenance.get("code") or {}
    revision = (
        f"; code {code['revision'][:12]}{' with changes' if code.get('dirty') else ''}" if code.get("revision") else ""
    )
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(content.drawn_ms / 1000))
    audit = f" Audit: {content.audit}." if content.audit else ""
    return escape(f"Drawn {when} by agft report {content.study}{revision}.{audit}")
