"""What the documentation site has besides docs/*.md: the README as its first page; commands, fields, names.

A link to a file outside docs/ becomes the file's path: the site does not carry the code.
"""

from __future__ import annotations

import html
import inspect
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from mkdocs.structure.files import File, Files

from study.begin.explain import Explained, every_field
from study.begin.schema import KINDS
from study.cli.main import main

ROOT = Path(__file__).parents[1]
WIDTH = 80
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])+)\]\(((?!\w+:|#)[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for name, text in {
        "index.md": first,
        "commands.md": commands(),
        "fields.md": fields(),
        "python.md": names(),
    }.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to what the site does not have, as the file's path."""

    def plain(found: re.Match[str]) -> str:
        target = found[2].partition("#")[0]
        if not target or (not target.startswith("../") and files.get_file_from_path(target)):
            return found[0]
        return found[1] if found[1].startswith("`") else f"{found[1]} (`{target.removeprefix('../')}`)"

    return LINK.sub(plain, markdown)


def commands() -> str:
    """Every command's help."""
    lines = ["# Commands", "", "What `agft COMMAND --help` says, of every command.", ""]
    for path in _paths(main, ()):
        shown = CliRunner().invoke(
            main, [*path, "--help"], prog_name="agft", terminal_width=WIDTH, max_content_width=WIDTH
        )
        assert shown.exit_code == 0, (path, shown.output)
        lines += [f"{'#' * (1 + len(path))} agft {' '.join(path)}", "", "```text", shown.output.rstrip(), "```", ""]
    return "\n".join(lines)


def _paths(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    inner = sorted(command.commands.items()) if isinstance(command, click.Group) else []
    own = [path] if path else []
    return [*own, *(each for name, child in inner for each in _paths(child, (*path, name)))]


def fields() -> str:
    """Every field of every kind of file."""
    unbroken = "<style>.md-typeset td code { white-space: nowrap; }</style>"
    lines = ["# Fields", "", unbroken, "", "Every field that a file may have, as `agft explain PATH` tells it.", ""]
    for kind in KINDS:
        head = ("| field | of | what it is | values | default |", "| --- | --- | --- | --- | --- |")
        lines += [f"## {kind.capitalize()} file", "", *head]
        lines += [_row(field, kind) for field in every_field(kind)]
        lines.append("")
    return "\n".join(lines)


def names() -> str:
    """Every public name of Python, from the list that a test holds the code to, with what its docstring says first."""
    told = (ROOT / "tests" / "golden" / "names.txt").read_text(encoding="utf-8").splitlines()
    where = "[studies](api.md) and [packages](contributing.md#from-another-package)"
    lines = ["# Python names", "", f"What a notebook, a script or a package of one's own may import: {where}.", ""]
    lines += ["| name | what it is |", "| --- | --- |"]
    for line in told:
        found = pkgutil.resolve_name(path) if callable_at(path := re.split(r"[(:]", line)[0]) else None
        about = (inspect.getdoc(found) or "").partition("\n\n")[0]
        lines.append(f"| `{line}` | {_text(about)} |")
    return "\n".join(lines)


def callable_at(path: str) -> bool:
    """Whether there is something with a docstring of its own: a record's field without a default is no attribute."""
    try:
        found = pkgutil.resolve_name(path)
    except AttributeError:
        return False
    return callable(found) or isinstance(found, property)


def _row(field: Explained, kind: str) -> str:
    path = field.path if kind == "study" else field.path.removeprefix(f"{kind}.")
    default = "required" if field.required else json.dumps(field.default) if field.has_default else ""
    cells = (f"`{path}`", field.of, field.meaning, field.type, default)
    return "| " + " | ".join(cell if cell.startswith("`") else _text(cell) for cell in cells) + " |"


def _text(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("*", "\\*").replace("[", "\\[")
