"""`agft data list`, `prepare`, `verify`."""

from __future__ import annotations

import sys
from typing import Any

import click

from study.cli.edge import home, json_option, print_json, told
from study.console import say

SOURCE, WIDE = "source and licence", 120  # a column, and how wide a terminal must be to show it
TITLES = {"paper": "AGFT's fifteen", "other": "others from files", "drawn": "drawn here, nothing to prepare"}


@click.group()
def data() -> None:
    """The datasets: what there is, and preparing them for training and evaluation."""


@data.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Show every dataset, and whether it is here."""
    from study.artifacts.datasets import list_datasets, reach_storage

    reach_storage(None, home(), start=False)
    rows = list_datasets()
    if as_json:
        print_json(rows)
    else:
        _show(rows)


@data.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--to", help="Folder or s3:// address of prepared sets.  [default: AGFT_PREPARED, else "
              "AGFT_DATA/prepared]")  # fmt: skip
@click.option("--download", is_flag=True, help="Get the files first; what is interrupted goes on. Where a login is "
              "needed, it says what to do.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Processes that decode.  [default: one a core]")
@json_option
def prepare(names: tuple[str, ...], to: str | None, download: bool, workers: int | None, as_json: bool) -> None:
    """Decode datasets once, for training and evaluation; run again to go on.

    NAME is a dataset of `agft data list`, or folder:DIRECTORY with a sub-folder of images for every class.
    """
    from study.artifacts.datasets import prepare_datasets, reach_storage

    reach_storage(to, home())
    places = prepare_datasets(names, to=to, fetching=download, workers=workers, tell=told(as_json))
    if as_json:
        print_json(places)


@data.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Check every byte of prepared datasets; exit code 1 if one is wrong."""
    from study.artifacts.datasets import reach_storage, verify_datasets

    reach_storage(None, home(), start=False)
    wrong = verify_datasets(names)
    for line in wrong:
        say(line)
    if as_json:
        print_json({"sets": names, "wrong": wrong})
    sys.exit(1 if wrong else 0)


def _show(rows: list[dict[str, Any]]) -> None:
    """A table a group; below them, where all this is and what to type next."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from study.console import wide_console
    from trainers.data.stored import data_root, prepared_place

    console = wide_console()
    columns = ["name", "split", "images", "classes", "GB", "state", "files"]
    if console.width >= WIDE:
        columns.append(SOURCE)
    for group, title in TITLES.items():
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
                      collapse_padding=True)  # fmt: skip
        for name in columns:
            number = name in ("images", "classes", "GB")
            table.add_column(name, justify="right" if number else "left", no_wrap=name not in ("split", SOURCE))
        for row in rows:
            if row["group"] == group:
                size = row["prepared_bytes"]
                cells = (row["name"], row["split"], f"{row['images']:,}", f"{row['classes']:,}",
                         f"{size / 1e9:.2f}" if size else "", row["state"], row["kind"], row["source"])  # fmt: skip
                table.add_row(*cells[: len(columns)])
        console.print(table)
    click.echo(f"files, AGFT_DATA: {data_root()}")
    click.echo(f"prepared sets, AGFT_PREPARED: {prepared_place()}")
    click.echo("GB: size when prepared. To get and prepare a set: agft data prepare NAME --download")
    click.echo("Images of your own are a dataset as well: folder:DIRECTORY. Class names, prompts: docs/datasets.md")
