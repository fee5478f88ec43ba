"""The documentation site: it is built without a broken link, and has commands, fields, public names and a search."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

import click
import pytest

from study.begin.explain import every_field
from study.begin.schema import KINDS
from study.cli.main import main

ROOT = Path(__file__).parents[2]


def names(command: click.Command, path: str) -> list[str]:
    inner = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(each for name, child in inner for each in names(child, f"{path} {name}"))]


@pytest.mark.slow
def test_the_site_is_built_strictly_and_has_every_command_every_field_and_a_search(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = (tmp_path / "commands.html").read_text()
    for name in names(main, "agft")[1:]:
        assert f"Usage: {name} " in shown, name
    fields = html.unescape((tmp_path / "fields.html").read_text())
    for kind in KINDS:
        for field in every_field(kind):
            path = field.path if kind == "study" else field.path.removeprefix(f"{kind}.")
            assert f"<code>{path}</code>" in fields, field.path
    told = html.unescape((tmp_path / "python.html").read_text())
    for line in (ROOT / "tests" / "golden" / "names.txt").read_text().splitlines():
        assert f"<code>{line}</code>" in told, line
    assert (tmp_path / "search" / "search_index.json").is_file()
    assert "make demo" in (tmp_path / "index.html").read_text()
    written = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert written <= {page.stem for page in tmp_path.glob("*.html")}
