"""What the fault suite found, kept as JSON and written down in docs/reliability.md."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.injections import FAULTS, WHOLE

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "bench" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- results: written by tests/faults/suite.py -->", "<!-- end of results -->"


def kept() -> list[dict[str, Any]]:
    """The newest result of every fault and kind of trials."""
    return list(json.loads(RECORD.read_text() or "[]")) if RECORD.exists() else []


def keep(row: dict[str, Any]) -> None:
    """In place of an older one of the same fault and kind."""
    names = [*FAULTS]
    RECORD.touch()
    with open(RECORD) as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # several suites may run side by side
        rows = [each for each in kept() if (each["fault"], each["kind"]) != (row["fault"], row["kind"])]
        rows.append({**row, "cpus": os.cpu_count()})
        rows.sort(key=lambda each: (each["kind"], names.index(each["fault"]) if each["fault"] in names else len(names)))
        RECORD.write_text(json.dumps(rows, indent=1) + "\n")


def write() -> None:
    """The page's tables anew; its words stay."""
    PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """The page with the tables that the kept results make."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n" + "\n".join(tables(kept())) + f"\n\n{END}{after}"


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One for all; what was violated below it."""
    yield "| fault | trials | times | complete | drivers | work lost: median, worst | violations | seed, commit |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        what = FAULTS[row["fault"]].what if row["fault"] in FAULTS else row["fault"]
        lost = "-" if row["lost_median"] is None else f"{row['lost_median']} s, {row['lost_worst']} s"
        size = f" ({row['trials']} trials)" if row["struck"] else ""  # of a soak
        studies = f"{row['completed']} of {row['studies']}{size}"
        yield (
            f"| {what} | {row['kind']} | {row['times']} | {studies} | {row['drivers']} | {lost} "
            f"| {len(row['violations'])} | {row['seed']}, {row['commit']} |"
        )
    for kind in WHOLE:
        done = {row["fault"] for row in rows if row["kind"] == kind}
        missing = [f"`{name}`" for name, fault in FAULTS.items() if kind in fault.kinds and name not in done]
        if missing:
            yield f"\nNot injected yet into {kind} trials, so nothing is said about them: {', '.join(missing)}."
    if any(row["violations"] for row in rows):
        yield "\nThe violations:"
    for row in rows:
        for violation in row["violations"]:
            yield f"\n`{row['fault']}`, {row['kind']}: {violation}".replace("|", "/")
