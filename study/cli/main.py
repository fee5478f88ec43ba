"""The `agft` command: a table of all commands, of which the one that is called is imported.

`agft --help` imports them all for their first sentences, which costs little: see `study.cli.edge`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import click

from infra.errors import FULL, into_nowhere
from infra.services import go_direct
from study.cli.edge import answer, answered, checked_names, hear_interrupts

# What `agft --help` shows: groups in a newcomer's order; of each command, its module in study.cli and two examples.
COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Write a study": {
        "init": ("files", "agft init mine.yaml --data ~/pictures", "agft init mine.yaml --recipe agft-b16 --gpus 8"),
        "explain": ("words", "agft explain attack.eps", "agft explain method.agft"),
        "validate": ("files", "agft validate mine.yaml", "agft validate mine.yaml --json"),
        "plan": ("files", "agft plan mine.yaml", "agft plan --suite zero-shot-15 --arch ViT-B-32 --tflops 50"),
        "data": ("data", "agft data list", "agft data prepare cifar10 --download"),
        "schema": ("words", "agft schema study", "agft schema study --line"),
    },
    "Run it": {
        "run": ("study", "agft run mine.yaml", "agft run mine.yaml --numbered --promote"),
        "submit": ("cluster", "agft submit mine.yaml --address http://head:8265", "agft submit mine.yaml --follow"),
        "pause": ("study", "agft pause mine", "agft pause mine --json"),
        "resume": ("study", "agft resume mine", "agft resume mine --promote"),
        "extend": ("study", "agft extend mine --trials 8", "agft extend mine --gpu-hours 24"),
        "stop": ("study", "agft stop mine", "agft stop mine --json"),
        "rerun": ("study", "agft rerun mine 3", "agft rerun mine 3 --json"),
        "drop": ("study", "agft drop mine 5", "agft drop mine 5 --reason 'ran on a broken node'"),
    },
    "Look at it": {
        "status": ("watch", "agft status", "agft status mine --watch"),
        "logs": ("watch", "agft logs mine", "agft logs mine -f"),
        "report": ("watch", "agft report mine", "agft report s3://agft/evaluations/x --against paper"),
        "ui": ("watch", "agft ui mine", "agft ui --port 9000 --no-open"),
        "audit": ("watch", "agft audit mine", "agft audit mine.json"),
    },
    "Promote and ship": {
        "promote": ("models", "agft promote mine", "agft promote mine --dry-run"),
        "approve": ("models", "agft approve robust-clip 4 --reason 'looked at its card'",
                    "agft approve robust-clip 4 --reason 'as agreed' --json"),
        "rollback": ("models", "agft rollback", "agft rollback robust-clip --to 3 --reason 'wrong data'"),
        "models": ("models", "agft models", "agft models robust-clip --json"),
        "pull": ("models", "agft pull robust-clip champion", "agft pull robust-clip@3 third"),
        "diff": ("models", "agft diff robust-clip@champion robust-clip@2", "agft diff mine/5 mine/7"),
    },
    "Measure and compare": {
        "evaluate": ("evaluate", "agft evaluate tiny-clip --suite tiny", "agft evaluate models:/robust-clip --plan"),
        "retrieve": ("evaluate", "agft retrieve tiny-clip --on flickr30k --eps 2/255",
                     "agft retrieve models:/robust-clip --on coco-val2017 --samples 1000"),
        "reproduce": ("evaluate", "agft reproduce agft-table", "agft reproduce agft-table --smoke"),
        "compare": ("files", "agft compare compare.yaml --plan", "agft compare compare.yaml"),
        "import": ("weights", "agft import fare.pt --arch ViT-L-14-quickgelu --out fare.safetensors",
                   "agft import pmg.tar --layout pmg-aft --arch ViT-B-32-quickgelu --out pmg.safetensors"),
        "export": ("weights", "agft export s3://agft/models/robust-clip/0001/ champion",
                   "agft export robust.safetensors robust.pth --layout agft"),
        "interpolate": ("weights", "agft interpolate robust.safetensors --out mixed",
                        "agft interpolate robust.safetensors --alphas 0.5,0.8 --out mixed"),
    },
    "Keep the service": {
        "doctor": ("operations", "agft doctor", "agft doctor mine.yaml"),
        "stack": ("stack", "agft stack up", "agft stack env stack.env"),
        "backup": ("operations", "agft backup monday.tar", "agft backup s3://backups/monday.tar --replace"),
        "restore-backup": ("operations", "agft restore-backup monday.tar", "agft restore-backup s3://backups/monday.tar"),
        "archive": ("study", "agft archive mine mine.json", "agft archive mine mine.json --replace"),
        "restore": ("study", "agft restore mine.json", "agft restore mine.json --name mine-copy"),
        "delete": ("study", "agft delete mine-copy", "agft delete mine-copy --yes"),
        "gc": ("models", "agft gc", "agft gc mine --top 3 --yes"),
        "metrics": ("operations", "agft metrics", "agft metrics --once"),
        "completion": ("words", "agft completion bash", "agft completion fish > ~/.config/fish/completions/agft.fish"),
    },
}  # fmt: skip
ROWS = {name: row for rows in COMMANDS.values() for name, row in rows.items()}


class Imported(Mapping[str, click.Command]):
    """All commands by name; looking one up imports its module."""

    def __iter__(self) -> Iterator[str]:
        return iter(ROWS)

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, name: str) -> click.Command:
        module, *examples = ROWS[name]
        found = vars(import_module(f"study.cli.{module}")).values()
        command = next(each for each in found if isinstance(each, click.Command) and each.name == name)
        command.epilog = "\n".join(["\b", "Examples:", *(f"  $ {example}" for example in examples)])
        return checked_names(command)


class Agft(click.Group):
    """Answers our errors with a message and an exit code; shows its commands in groups."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, rows in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(1000)) for name in rows], col_max=16)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except answered() as error:
            sys.exit(answer(error))
        except OSError as error:
            if error.errno not in FULL:
                raise
            into_nowhere(sys.stdout)
            sys.exit(answer(error))


@click.group(cls=Agft, commands=Imported(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="agft-study")
def main() -> None:
    """Hyperparameter studies for adversarially robust CLIP: search, watch, promote.

    \b
    First:  agft init mine.yaml    agft run mine.yaml    agft report mine
    Each COMMAND's --help has examples; agft explain FIELD says what to write.
    """
    hear_interrupts()
    go_direct()
