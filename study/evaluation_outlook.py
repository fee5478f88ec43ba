"""What an evaluation would compute, before anything is loaded or started."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from study.console import wide_console
from study.evaluation_plan import UNIT_IMAGES, units
from study.evaluation_suite import capped, unready
from trainers.data import dataset_entry
from trainers.suite import Suite
from trainers.units import eps_label

__all__ = ["outlook", "show_outlook"]


def outlook(suite: Suite) -> list[dict[str, Any]]:
    """One row a dataset and attack, as JSON values; `passes`: of the encoder, forward and backward, at most."""
    rows = []
    for name in suite.datasets:
        num_classes = dataset_entry(name, "datasets").num_classes
        for entry in suite.attacks:
            planned = units(name, entry)
            images = sum(unit.images for unit in planned)
            forward, backward = entry.attack.passes(num_classes, norm=entry.norm)
            times = images * len(entry.eps)
            rows.append(
                {
                    "dataset": name,
                    "attack": entry.label,
                    "eps": [eps_label(eps) for eps in entry.eps],
                    "images": images,
                    "units": len(planned),
                    "passes": {"forward": images + times * forward, "backward": times * backward},
                }
            )
    return rows


def show_outlook(suite: Suite, samples: int | None, *, as_json: bool) -> None:
    """Print it, with what must be prepared first."""
    rows = outlook(capped(suite, samples))
    missing = unready(suite)
    if as_json:
        found = {"suite": suite.name, "protocol": suite.protocol, "rows": rows, "missing": missing}
        click.echo(json.dumps(found, indent=2))
        return
    table = Table(title=f"suite {suite.name}, protocol {suite.protocol}, for each model", title_justify="left",
                  box=SIMPLE_HEAD, pad_edge=False)  # fmt: skip
    for name in ("dataset", "attack", "eps"):
        table.add_column(name, no_wrap=True)
    for name in ("images", "units", "forward passes", "backward passes"):
        table.add_column(name, justify="right")
    for row in rows:
        passes = (f"{value:,}" for value in row["passes"].values())
        table.add_row(row["dataset"], row["attack"], ", ".join(row["eps"]), f"{row['images']:,}", f"{row['units']:,}",
                      *passes)  # fmt: skip
    wide_console().print(table)
    total = {key: sum(row["passes"][key] for row in rows) for key in ("forward", "backward")}
    click.echo(f"{sum(row['units'] for row in rows):,} units of at most {UNIT_IMAGES} images; at most "
               f"{total['forward']:,} forward and {total['backward']:,} backward passes of the encoder")  # fmt: skip
    if suite.protocol == "strict":
        click.echo("fewer in the end: in protocol strict an image that is fooled is left alone")
    for line in missing:
        click.echo(f"first: {line}")
