"""What became of a study's promotions, for its report: every decision, and what stood against whatever was forced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from study.markdown import escaped

HEAD = ("when (UTC)", "trial", "outcome", "look at the confirm sets", "not passed", "why")
NOTE = (
    "Decided on the confirm sets; the final sets may veto. A look is a comparison with the champion of that time; the "
    "later it is, the more it has to show (docs/promotion.md)."
)


@dataclass(frozen=True)
class Decision:
    """One promotion as recorded. `against`: gates that were not passed, with what they found and needed."""

    ended_ms: int
    state: str
    trial: int | None
    version: int | None
    look: int | None
    forced: str | None
    against: tuple[str, ...]
    reason: str


def decisions(rows: Iterable[Mapping[str, Any]]) -> tuple[Decision, ...]:
    """Of rows of `study.store.requests.promotions`: those that have ended with a record, oldest first."""
    found = []
    for row in rows:
        record = row["record"] or {}
        if row["ended_ms"] is None or record.get("trial") is None:
            continue
        failed = [gate for gate in record.get("gates", ()) if gate["verdict"] == "failed"]
        against = tuple(f"{gate['name']}: {gate['found']}, needed {gate['needed']}" for gate in failed)
        look = (record.get("look") or {}).get("number")
        told = (record["trial"], record.get("version"), look, record.get("forced"))
        found.append(Decision(row["ended_ms"], row["state"], *told, against, record.get("reason", "")))
    return tuple(found)


def _cells(each: Decision) -> tuple[str, ...]:
    outcome = each.state if each.version is None else f"{each.state}: version {each.version}"
    why = "" if each.reason == "; ".join(each.against) else each.reason
    if each.forced is not None:
        outcome, why = f"{outcome}, against its gates", f"forced: {each.forced}"
    look = "-" if each.look is None else str(each.look)
    when = datetime.fromtimestamp(each.ended_ms / 1000, UTC)
    return f"{when:%Y-%m-%d %H:%M}", str(each.trial), outcome, look, "; ".join(each.against) or "-", why


def as_markdown(found: tuple[Decision, ...]) -> list[str]:
    """Lines of a section; none without promotions."""
    if not found:
        return []
    rows = [[escaped(cell) for cell in _cells(each)] for each in found]
    lines = [f"| {' | '.join(row)} |" for row in (HEAD, ("---",) * len(HEAD), *rows)]
    return ["## Promotions", "", NOTE, "", *lines, ""]


def as_html(found: tuple[Decision, ...]) -> str:
    """A section of the page; empty without promotions."""
    if not found:
        return ""
    head = "".join(f'<th class="text" scope="col">{name}</th>' for name in HEAD)
    cells = [[f'<td class="text">{escape(cell)}</td>' for cell in _cells(each)] for each in found]
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return (
        f'<section id="promotions"><h2>Promotions</h2><p>{NOTE}</p><div class="scroll"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div></section>"
    )
