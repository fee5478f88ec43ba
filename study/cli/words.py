"""`agft explain`, `schema`, `completion`: what can be written, for people, editors and shells."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from study.cli.edge import home, json_option, print_json

if TYPE_CHECKING:
    from study.begin.explain import Explained

KINDS = ("study", "compare", "suite", "policy")  # of study.begin.schema
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("path", required=False, default="")
@json_option
def explain(path: str, as_json: bool) -> None:
    """Say what a field of a study file means: its type and range, its default, its paper.

    PATH is dotted, as `attack.eps`, or `method.agft.scale_ratio` where methods differ. Fields of other files begin with
    their kind: `suite.attacks`, `compare.methods`, `policy.floors`. Without PATH, the blocks of a study file.
    """
    from study.begin.explain import explain as explained

    found = explained(path)
    if as_json:
        print_json([each.record() for each in found])
        return
    for place, each in enumerate(found):
        click.echo(("\n" if place else "") + _text(each), nl=False)


def _text(found: Explained) -> str:
    from study.begin.explain import written

    page = click.HelpFormatter(width=min(100, shutil.get_terminal_size().columns - 2))
    page.write(f"{found.path or 'study file'}{f'  (of {found.of})' if found.of else ''}\n")
    page.indent()
    page.write_text(found.meaning)
    rows = [("type", found.type)]
    if found.required:
        rows.append(("required", "yes"))
    elif found.has_default:
        rows.append(("default", written(found.path, found.default)))
    rows += [(name, written(found.path, value)) for name, value in found.published.items()]
    page.write_dl(rows)
    for paragraph in filter(None, found.about.split("\n\n")):
        page.write_paragraph()
        if any(line.startswith(" ") for line in paragraph.splitlines()):  # an equation
            page.write("".join(f"  {line}\n" for line in paragraph.splitlines()))
        else:
            page.write_text(paragraph)
    if found.alternatives:
        page.write_paragraph()
        page.write_text(f"one of them: agft explain {found.path}.{found.alternatives[0]}")
    elif found.fields:
        page.write_paragraph()
        page.write_dl(list(found.fields.items()))
    return page.getvalue()


@click.command()
@click.argument("kind", type=click.Choice(KINDS), default="study")
@click.option("--line", is_flag=True, help="Keep it in the AGFT home, and print the line by which editors find it.")
def schema(kind: str, line: bool) -> None:
    """Print the JSON Schema of a kind of file; editors complete and check by it.

    With --line it prints what to put first into a file: VS Code (with its YAML extension), Neovim, Emacs and whatever
    else uses the YAML language server then know every field. `agft init` writes that line itself.
    """
    from study.begin.schema import editor_line, kept_schema, schema_of

    if line:
        click.echo(editor_line(kept_schema(kind, home())))
    else:
        print_json(schema_of(kind))


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options, and names of studies.

    \b
    bash  echo 'eval "$(agft completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(agft completion zsh)"' >> ~/.zshrc
    fish  agft completion fish > ~/.config/fish/completions/agft.fish
    """
    from click.shell_completion import get_completion_class

    from study.cli.main import main

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "agft", "_AGFT_COMPLETE").source())
