"""All studies of a database as a page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

from study.console import percent
from study.results.status import study_status
from study.store.database import engine_for, now
from study.store.store import StudyStore, study_names

CSS = Path(__file__).parents[1] / "report" / "web" / "report.css"
HEADINGS = ("study", "state", "done", "best robust", "best clean", "device hours")


def studies_page(url: str) -> str:
    """One row a study, newest first; the page loads itself again every 2 s."""
    with engine_for(url).connect() as connection:
        clock = now(connection)
    rows = []
    for name in study_names(url):
        store = StudyStore(url, name)
        found = study_status(store.load(), store.trials(), clock)
        best = found["best"] or {}
        cells = (
            found["state"], f"{found['counts']['done']} of {found['wanted']}", percent(best.get("robust_accuracy")),
            percent(best.get("clean_accuracy")), f"{found['device_hours']:.2f}",
        )  # fmt: skip
        link = f'<a href="/studies/{quote(name, safe="")}">{escape(name)}</a>'
        rows.append(
            f'<tr><td class="text">{link}</td>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    head = "".join(f'<th class="{"" if place else "text"}">{name}</th>' for place, name in enumerate(HEADINGS))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    none = '<p class="none">No studies yet; start one with <code>agft run FILE</code>.</p>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="2">'
        f"<title>studies</title><style>{CSS.read_text(encoding='utf-8')}</style></head><body><main><h1>Studies</h1>"
        f"<section>{table if rows else none}</section></main></body></html>"
    )
