"""The table of commands says what the commands say, and help costs no heavy import."""

from __future__ import annotations

import subprocess
import sys

from study.cli.main import COMMANDS, MODULES, main

EVERY_HELP = """
import sys
from click.testing import CliRunner
from study.cli.main import main

runner, heavy = CliRunner(), {"torch", "ray", "mlflow", "open_clip", "boto3", "sqlalchemy", "pydantic"}
assert runner.invoke(main, ["--help"]).exit_code == 0
assert {name for name in sys.modules if name.startswith("study.cli.")} == {"study.cli.main", "study.cli.edge"}
for name in main.commands:
    done = runner.invoke(main, [name, "--help"])
    assert done.exit_code == 0, (name, done.output)
    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))
"""


def test_help_of_a_command_is_told_in_the_table_and_no_command_stands_twice() -> None:
    assert len(MODULES) == sum(map(len, COMMANDS.values()))
    for name, command in main.commands.items():
        assert command.name == name
        first = (command.help or "").partition("\n\n")[0]
        assert " ".join(first.split()) == COMMANDS[MODULES[name]][name]


def test_no_help_pays_for_torch_ray_mlflow_or_a_database() -> None:
    subprocess.run([sys.executable, "-c", EVERY_HELP], check=True)


def test_an_unknown_command_is_answered_with_the_nearest_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from study.cli.main import main; main()", "promot"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "promote" in done.stderr
