"""What a suite costs, for a person: no line is wider than a terminal of 80 columns unless its names are."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

__all__ = ["cost_text", "short"]

WIDTH = 80
LEFT = 3  # columns that hold words


def cost_text(found: Mapping[str, Any], training: int | None = None) -> str:
    """`found` is what `cost_of` gives; `training`: passes of one full trial's training, to compare with."""
    lines = _said(
        f"suite {found['suite']}, protocol {found['protocol']}", "image passes of one model, forward and backward"
    )
    lines += _aligned(_cells(found))
    lines += _said("expected", _expectation(found))
    lines += _said("hours", _hours_text(found))
    if training is not None:
        ratio = sum(found["total"]["expected"].values()) / training
        lines += _said("training", f"one full trial of the study takes {short(training)} passes; this suite is "
                       f"expected to take {short(ratio)} times as many")  # fmt: skip
    return "\n".join(lines)


def _cells(found: Mapping[str, Any]) -> list[list[str]]:
    timed = found["rate"] is not None
    rows = [["dataset", "attack", "radii", "images", "at most", "expected", *(["hours"] if timed else [])]]
    for row in found["rows"]:
        counted = row["dataset"], row["attack"], ", ".join(row["eps"]), f"{row['images']:,}"
        rows.append([*counted, *_numbers(row, timed=timed)])
    rows.append(["all", "", "", "", *_numbers(found["total"], timed=timed)])
    return rows


def _numbers(row: Mapping[str, Any], *, timed: bool) -> list[str]:
    passes = [short(sum(row[name].values())) for name in ("at_most", "expected")]
    return [*passes, *([f"{row['hours_expected']:.3g}"] if timed else [])]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if column < LEFT else cell.rjust(width) for column, (cell, width) in pairs]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines


def _expectation(found: Mapping[str, Any]) -> str:
    if found["protocol"] != "strict":
        return "the same, as protocol paper skips nothing"
    clean, robust = (f"{100 * found['assumed'][name]:g} %" for name in ("clean", "robust"))
    return f"if {clean} of the images are right without attack and {robust} under it; the others are soon settled"


def _hours_text(found: Mapping[str, Any]) -> str:
    if found["rate"] is None:
        return "not known: passes x seconds a pass; see --measure, --seconds-per-pass and --tflops of agft plan"
    most = found["total"]["hours_at_most"]
    return f"of one such device, as expected (at most {most:.3g}); {found['rate']['basis']}"


def _said(word: str, text: str) -> list[str]:
    return textwrap.wrap(f"{word}: {text}", WIDTH, subsequent_indent="  ")


def short(passes: float) -> str:
    """Three digits: `1.28 M`."""
    value, units = float(passes), ["", " k", " M", " G"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:,.0f}{units[0]}" if value >= 999.5 else f"{value:.3g}{units[0]}"
