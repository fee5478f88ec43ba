"""A comparison's results as tables for papers, each row traceable to `comparison.json` and to the weights measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study import latex
from study.comparison.tables import result_rows

Record = Mapping[str, Any]


def latex_of(record: Record, facts: Path) -> str:
    """A table a group of final sets. `facts`: the `comparison.json` of this record."""
    own = hashlib.sha256(facts.read_bytes()).hexdigest()
    tables = []
    for number, group in enumerate(record["groups"]):
        head, rows = result_rows(record, group)
        sources = [_source(facts, label, method) for label, method in record["methods"].items()]
        sources += [f"{facts.name}#/unmodified/final"]
        caption = f"Comparison {record['name']}, {group['title']}: mean ± standard deviation over seeds (%), and the "
        caption += f"difference to {record['reference']} with its interval."
        about = [
            f"agft compare --latex: {record['name']}",
            f"{facts.name} sha256:{own}",
            f"cells: {facts.name}#/groups/{number}",
        ]
        label = f"tab:{record['name']}-{number + 1}"
        tables.append(latex.table(head, rows, caption=caption, label=label, about=about, sources=sources))
    return "\n".join(tables)


def _source(facts: Path, label: str, method: Mapping[str, Any]) -> str:
    """Where a method's runs stand, and the weights of each seed."""
    kept = [(run["seed"], (run["weights"] or {}).get("sha256")) for run in method["runs"] if run["final"]]
    weights = ", ".join(f"seed {seed} sha256:{sha256}" for seed, sha256 in kept)
    return f"{facts.name}#/methods/{label}/runs; weights: {weights}"
