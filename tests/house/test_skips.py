"""A run is not green because something that it needs is missing: which skips there are, and what the others do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.skips import ANYWHERE, SLOW

TESTS = Path(__file__).parents[1]
SAMPLE = """\
import pytest

def test_runs():
    pass

@pytest.mark.parametrize("reason", {reasons})
def test_quick(reason):
    pytest.skip(reason)

@pytest.mark.slow
@pytest.mark.parametrize("reason", {reasons})
def test_slow(reason):
    pytest.skip(reason)
"""


def reasons() -> Iterator[tuple[str, str]]:
    """(file, how the reason begins) of every skip that is written in a test; `<name>` for one that is computed."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.startswith("pytest.") and "skip" in called:
                [text] = [*[word.value for word in node.keywords if word.arg == "reason"], *node.args[-1:]][:1]
                if isinstance(text, ast.JoinedStr):
                    text = text.values[0]
                yield path.name, text.value if isinstance(text, ast.Constant) else f"<{ast.unparse(text)}>"


def test_every_skip_in_the_tests_has_an_allowed_reason():
    found = set(reasons())
    assert ("test_prefetch.py", "needs a GPU") in found
    known = (*ANYWHERE, *SLOW, "<reason>")  # of `hosts.why_not`: begins as SLOW says, which is looked at as it happens
    assert [(file, reason) for file, reason in sorted(found) if not reason.startswith(known)] == []


@pytest.mark.parametrize(
    ("reasons", "wrong"),
    [
        (["needs a GPU"], set()),
        (
            ["needs a GPU", "no podman here", "no initdb"],
            {("quick", "no podman here"), ("quick", "no initdb"), ("slow", "no initdb")},
        ),
    ],
    ids=["a GPU", "a program"],
)
def test_a_skip_for_want_of_anything_else_fails_the_run(tmp_path: Path, reasons: list[str], wrong: set) -> None:
    file = tmp_path / "test_sample.py"
    file.write_text(SAMPLE.format(reasons=reasons))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.skips", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"1 passed, {2 * len(reasons)} skipped" in done.stdout
    assert done.returncode == bool(wrong), done.stdout
    assert set(re.findall(r"^test_sample.py::test_(\w+)\[.*\]: (.*)$", done.stdout, flags=re.M)) == wrong
