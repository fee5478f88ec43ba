"""`agft data list`, `prepare`, `verify`: light to import, as the whole command line is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["attach"]


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the commands. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.group()
    def data() -> None:
        """The datasets: what there is, and preparing them for training and evaluation."""

    @data.command("list")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def list_(as_json: bool) -> None:
        """Show every dataset, and whether it is here."""
        from study.data import list_datasets

        rows = list_datasets()
        if as_json:
            click.echo(json.dumps(rows, indent=2))
            return
        from rich.table import Table

        from study.console import wide_console

        table = Table(title="datasets", title_justify="left")
        for name in ("name", "split", "images", "classes", "state", "source and licence"):
            table.add_column(name, justify="right" if name in ("images", "classes") else "left",
                             no_wrap=name in ("name", "state"))  # fmt: skip
        for row in rows:
            table.add_row(row["name"], row["split"], f"{row['images']:,}", f"{row['classes']:,}", row["state"],
                          row["source"])  # fmt: skip
        wide_console().print(table)

    @data.command()
    @click.argument("names", nargs=-1, required=True, metavar="NAME...")
    @click.option("--to", help="Folder or s3:// address of prepared sets.  [default: AGFT_PREPARED, else "
                  "AGFT_DATA/prepared]")  # fmt: skip
    @click.option("--download", is_flag=True, help="Get the files first, where that needs no login.")
    @click.option("--workers", type=click.IntRange(min=1), help="Processes that decode.  [default: one a core]")
    @answering
    def prepare(names: tuple[str, ...], to: str | None, download: bool, workers: int | None) -> None:
        """Decode datasets once, into files that training and evaluation map into memory; run again to go on."""
        from study.data import prepare_datasets, reach_storage

        reach_storage(to, home())
        prepare_datasets(names, to=to, fetching=download, workers=workers)

    @data.command()
    @click.argument("names", nargs=-1, required=True, metavar="NAME...")
    @answering
    def verify(names: tuple[str, ...]) -> None:
        """Read every byte of prepared datasets and compare it with what it should be; exit code 1 if it is not."""
        from study.data import reach_storage, verify_datasets

        reach_storage(None, home())
        wrong = verify_datasets(names)
        for line in wrong:
            click.echo(line, err=True)
        sys.exit(1 if wrong else 0)
