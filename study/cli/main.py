"""The `agft` command: a table of all commands, of which only the one that is called is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from study.cli.edge import ANSWERED, answer

# module of study.cli -> its commands, each with the first paragraph of its help
COMMANDS: dict[str, dict[str, str]] = {
    "files": {
        "compare": "Compare methods: an equal search each, fresh seeds, final sets; run again to go on.",
        "init": "Write a new study file with a published recipe spelled out.",
        "plan": "Show what a study would do, or what measuring a model on a suite costs, without starting anything.",
        "validate": "Check a study file; every mistake is reported at once, nothing is started.",
    },
    "study": {
        "archive": "Write everything the database knows of a study to one JSON file; checkpoints stay in S3.",
        "delete": "Delete a study with its checkpoints and MLflow runs; promoted models stay.",
        "drop": "Take one trial out of a study: its history stays, it counts nowhere, and the search forgets it.",
        "extend": "Raise a study's budget, whether it runs or has finished.",
        "pause": "Ask a running study to pause; `agft resume` goes on with it.",
        "rerun": "Run one trial again, as a new trial with the same parameters.",
        "restore": "Put an archived study into this database, for instance to move it from SQLite to PostgreSQL.",
        "resume": "Go on with a study from where it is, on whatever machine this is; Ctrl-C pauses it.",
        "run": "Run a study here, or go on with it; Ctrl-C pauses it.",
        "stop": "End a study now; its running trials count as stopped early.",
    },
    "watch": {
        "logs": "Show what a study's drivers printed, wherever they ran; exit code 0 of -f: the study has ended.",
        "report": "Write a study's table and figures; or set an evaluation beside published numbers or another model.",
        "status": "Show all studies, or one with its trials and attempts, wherever they run.",
    },
    "cluster": {
        "submit": "Run a study on a Ray cluster, with its driver there, too: this terminal may go.",
    },
    "promote": {
        "promote": "Prove the best trials on unseen data, and make the winner the champion if it passes every gate.",
        "rollback": "Make an earlier version the champion again, as a new generation; MLflow's aliases follow.",
    },
    "models": {
        "diff": "What differs between two versions (NAME@champion, NAME@3) or two trials (STUDY/5).",
        "gc": "List what nothing needs any more (checkpoints of STUDY, unfinished versions, the cache); --yes deletes.",
        "models": "Promoted models: versions, champion and previous, where they are from, how good they are.",
        "pull": "Download a promoted model to DIR, a folder for open_clip; every byte is compared.",
    },
    "evaluate": {
        "evaluate": "Measure models on a suite of datasets under attack, on all workers of a Ray cluster; run again "
        "to go on.",
    },
    "weights": {
        "export": "Write WEIGHTS (a weights file, an export folder, or its s3:// address) for other codes.",
        "import": "Make weights of a checkpoint that another code saved (AGFT, TeCoA, PMG-AFT, TGA-ZSR, FARE, "
        "open_clip).",
        "interpolate": "Mix ROBUST with the CLIP before fine-tuning: clean accuracy against robustness, without "
        "training.",
    },
    "data": {
        "data": "The datasets: what there is, and preparing them for training and evaluation.",
    },
    "operations": {
        "backup": "Write all studies and the champions' records to one file, also while studies run.",
        "doctor": "Check services, database, machine and every Ray node; with a study FILE, its data, weights and "
        "GPUs, too.",
        "metrics": "Serve metrics of all studies to Prometheus, until Ctrl-C; a token is demanded.",
        "restore-backup": "Put a backup into this stack: studies, champions, and what their trials go on from.",
    },
    "stack": {
        "stack": "The embedded services: S3 storage (SeaweedFS), the MLflow server and on request PostgreSQL.",
    },
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
    """Lists its commands from the table, and answers our errors with a message and an exit code."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, MODULES))
        rows = [
            (name, click.Command(name, help=COMMANDS[MODULES[name]][name]).get_short_help_str(limit))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ANSWERED as error:
            sys.exit(answer(error))


@click.group(cls=Agft, commands=Imported(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agft-study")
def main() -> None:
    """Hyperparameter studies for adversarially robust CLIP: search, watch, promote."""
