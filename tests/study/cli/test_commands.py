"""The table of commands is complete, and help costs no heavy import."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import click

from study.cli.main import COMMANDS, MODULES, main

FOLDER = Path(__file__).parents[3] / "study" / "cli"
EVERY_HELP = """
import sys
from click.testing import CliRunner
from study.cli.main import main

runner, heavy = CliRunner(), {"torch", "ray", "mlflow", "open_clip", "boto3", "sqlalchemy", "pydantic"}
assert runner.invoke(main, ["stack", "--help"]).exit_code == 0
ours = {name for name in sys.modules if name.startswith("study.cli.")}
assert ours == {"study.cli.main", "study.cli.edge", "study.cli.stack"}, ours
assert runner.invoke(main, ["--help"]).exit_code == 0
for name in sorted(main.commands, key=lambda name: name == "init"):
    if name == "init":
        heavy.remove("pydantic")  # its presets come with the methods, which are typed records
    done = runner.invoke(main, [name, "--help"])
    assert done.exit_code == 0, (name, done.output)
    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))
"""


def test_every_command_is_in_the_table_once_under_the_module_that_has_it() -> None:
    assert len(MODULES) == sum(map(len, COMMANDS.values()))
    assert {name: command.name for name, command in main.commands.items()} == {name: name for name in MODULES}
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "main", "edge", "tables"}
    assert files == set(COMMANDS)
    for module, names in COMMANDS.items():
        found = vars(importlib.import_module(f"study.cli.{module}")).values()
        commands = [each for each in found if isinstance(each, click.Command)]
        inner = [each for group in commands if isinstance(group, click.Group) for each in group.commands.values()]
        assert {each.name for each in commands if each not in inner} == set(names)


def test_no_help_pays_for_torch_ray_mlflow_or_a_database() -> None:
    subprocess.run([sys.executable, "-c", EVERY_HELP], check=True)


def test_an_unknown_command_is_answered_with_the_nearest_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from study.cli.main import main; main()", "promot"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "promote" in done.stderr
