"""The `agft` command: a table of all commands, of which the one that is called is imported.

`agft --help` imports them all for their first sentences, which costs little: see `study.cli.edge`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from study.cli.edge import ANSWERED, answer, hear_interrupts

# module of study.cli -> its commands
COMMANDS = {
    "files": ("init", "validate", "plan", "compare"),
    "study": ("run", "resume", "pause", "stop", "extend", "rerun", "drop", "delete", "archive", "restore"),
    "watch": ("status", "logs", "report", "audit"),
    "cluster": ("submit",),
    "promote": ("promote", "rollback"),
    "models": ("models", "pull", "diff", "gc"),
    "evaluate": ("evaluate",),
    "weights": ("import", "export", "interpolate"),
    "data": ("data",),
    "operations": ("backup", "restore-backup", "doctor", "metrics"),
    "stack": ("stack",),
}
MODULES = {name: module for module, names in COMMANDS.items() for name in names}


class Imported(Mapping[str, click.Command]):
    """All commands by name; looking one up imports its module."""

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)

    def __getitem__(self, name: str) -> click.Command:
        found = vars(import_module(f"study.cli.{MODULES[name]}")).values()
        return next(each for each in found if isinstance(each, click.Command) and each.name == name)


class Agft(click.Group):
    """Answers our errors with a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ANSWERED as error:
            sys.exit(answer(error))


@click.group(cls=Agft, commands=Imported(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agft-study")
def main() -> None:
    """Hyperparameter studies for adversarially robust CLIP: search, watch, promote."""
    hear_interrupts()
