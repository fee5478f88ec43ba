"""What `agft gc` says: by kind and reason, how many, how many bytes, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study.gc import Findings
from study.retention import Doomed

__all__ = ["as_record", "gc_lines"]

LISTED = 20  # of a kind; all of them are in --json
KINDS = {
    "study": "checkpoints",
    "versions": "unfinished versions",
    "cache": "local cache",
    "strangers": "other studies",
}


def as_record(found: Findings, gone: Sequence[Doomed] | None) -> dict[str, Any]:
    """For machines: every place with its bytes and the reason, by kind; `deleted` is null in a dry run."""
    kinds = {kind: [vars(each) for each in getattr(found, kind)] for kind in KINDS}
    deleted = None if gone is None else {"objects": len(gone), "bytes": total(gone)}
    return {**kinds, "notes": found.notes, "deleted": deleted}


def gc_lines(found: Findings, gone: Sequence[Doomed] | None, *, study: str | None, unknown: bool) -> list[str]:
    """For people."""
    lines = []
    for kind, title in KINDS.items():
        doomed = getattr(found, kind)
        if not doomed:
            continue
        kept = ", reported only (--unknown deletes them)" if kind == "strangers" and not unknown else ""
        lines.append(f"{title}: {len(doomed)}, {size(total(doomed))}{kept}")
        lines += [f"  {size(each.bytes):>9}  {each.place}  ({each.reason})" for each in doomed[:LISTED]]
        lines += [f"  ... and {len(doomed) - LISTED} more; --json lists all"] if len(doomed) > LISTED else []
    lines += found.notes
    if study is None:
        lines.append("checkpoints of a study are looked at only when it is named: agft gc STUDY")
    doomed = found.doomed(strangers=unknown)
    if gone is not None:
        return [*lines, f"deleted {len(gone)} of {len(doomed)}, {size(total(gone))}"]
    if not doomed:
        return [*lines, "nothing to delete"]
    return [*lines, f"dry run: nothing was deleted; --yes deletes {len(doomed)}, {size(total(doomed))}"]


def total(doomed: Sequence[Doomed]) -> int:
    """Bytes."""
    return sum(each.bytes for each in doomed)


def size(count: float) -> str:
    """`4.6 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
