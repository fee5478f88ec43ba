"""A report as one HTML file that needs no network: plotly.js, data, style and script are inside.

Everything that a user or a machine wrote is escaped, in the page and in the data.
"""

from __future__ import annotations

import functools
import json
import time
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from study.console import percent
from study.facts import Trial
from study.report_content import Content
from study.report_plotly import FIGURES, figures
from study.report_style import LABELS, STATES

__all__ = ["html_of"]

PAGE = Path(__file__).with_name("page")


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
