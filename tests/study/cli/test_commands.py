"""The table of commands is complete, and help costs no heavy import."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from study.cli.main import COMMANDS, ROWS, main
from study.store.database import database_url
from study.store.store import StudyStore
from tests.support.study_files import minimal_study

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
    assert len(ROWS) == sum(map(len, COMMANDS.values()))
    assert {name: command.name for name, command in main.commands.items()} == {name: name for name in ROWS}
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "main", "edge", "tables"}
    assert files == {module for module, *_ in ROWS.values()}
    for module in files:
        found = vars(importlib.import_module(f"study.cli.{module}")).values()
        commands = [each for each in found if isinstance(each, click.Command)]
        inner = [each for group in commands if isinstance(group, click.Group) for each in group.commands.values()]
        assert {each.name for each in commands if each not in inner} == {
            n for n, row in ROWS.items() if row[0] == module
        }


def parsed(line: str) -> click.Context:
    """The context of a command line, which is read and not run."""
    command: click.Command = main
    arguments = shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    above = click.Context(main, info_name="agft", **main.context_settings)
    return command.make_context(command.name, arguments, parent=above)


@pytest.mark.parametrize("name", ROWS)
def test_every_command_shows_two_examples_which_its_options_take(name: str) -> None:
    _, *examples = ROWS[name]
    assert len(set(examples)) == 2
    for example in examples:
        assert example.startswith(f"agft {name}")
        parsed(example.partition(" > ")[0])
    shown = CliRunner().invoke(main, [name, "--help"], terminal_width=80).output
    assert all(f"  $ {example}" in shown for example in examples)


def test_help_shows_every_command_in_a_group_with_its_whole_first_sentence() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in shown.partition("Write a study:")[2]
    for title, rows in COMMANDS.items():
        part = shown.partition(f"{title}:\n")[2].partition("\n\n")[0]
        assert all(f"  {name} " in part for name in rows), title


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_what_the_shell_reads(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_AGFT_COMPLETE" in done.output
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.output, text=True, check=True)


def test_completion_knows_commands_and_the_names_of_studies(tmp_path: Path) -> None:
    env = {"AGFT_HOME": str(tmp_path), "AGFT_STUDY_DB": "", "_AGFT_COMPLETE": "bash_complete"}
    StudyStore(database_url(tmp_path), "winter").create(minimal_study(name="winter"))

    def offered(words: str) -> list[str]:
        place = str(len(words.split(" ")) - 1)
        done = CliRunner().invoke(main, prog_name="agft", env={**env, "COMP_WORDS": words, "COMP_CWORD": place})
        return [line.partition(",")[2] for line in done.output.splitlines()]

    assert offered("agft expl") == ["explain"]
    assert offered("agft status win") == ["winter"]


def test_no_help_pays_for_torch_ray_mlflow_or_a_database() -> None:
    subprocess.run([sys.executable, "-c", EVERY_HELP], check=True)


def test_an_unknown_command_is_answered_with_the_nearest_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from study.cli.main import main; main()", "promot"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "promote" in done.stderr


@pytest.mark.parametrize("command", [("schema", "study"), ("explain", "attack.eps")])
def test_a_full_disk_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from study.cli.main import main; main()", *command],
            env={**os.environ, "AGFT_HOME": str(tmp_path)}, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "failed: No space left on device\n")
