"""`agft models`, `agft pull`, `agft diff`, `agft gc`: light to import, as the whole command line is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from infra.services import Services


FOLDER = click.Path(path_type=Path)


def say(text: str) -> None:
    """Progress and remarks; results alone go to standard output."""
    click.echo(text, err=True)


def _services(home: Path) -> Services:
    """The services that the environment names, or the embedded ones, started if need be."""
    import os

    from infra.services import services_from_environment
    from infra.stack import stack

    services = services_from_environment(os.environ)
    if services is None:
        say("connecting to the embedded services ...")
        services = stack.up(home)
    os.environ.update(services.environment())
    return services


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the commands. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.argument("name", required=False)
    @click.option("--repair", is_flag=True, help="Register in MLflow what it lacks, and set its aliases.")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def models(name: str | None, repair: bool, as_json: bool) -> None:
        """Promoted models: versions, champion and previous, where they are from, how good they are."""
        services = _services(home())
        from study.console import wide_console
        from study.models.catalog import known_name, model_names
        from study.models.table import all_facts, difference_lines, models_table

        known = model_names(services.bucket)
        chosen = known if name is None else {known_name(name, known): known[known_name(name, known)]}
        if repair:
            from study.models.registry import repair as put_right

            for each in chosen:
                count = put_right(services.bucket, each, services.mlflow_uri, say)
                say(f"{each}: {count} versions registered, aliases are those of HEAD.json")
        found = all_facts(services.bucket, chosen, services.mlflow_uri)
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        if not found:
            click.echo("no model was promoted yet; agft promote STUDY does")
        for facts in found:
            wide_console().print(models_table(facts))
            for line in difference_lines(facts):
                click.echo(line)

    @main.command()
    @click.argument("model", metavar="NAME[@champion|@previous|@N]")
    @click.argument("folder", type=FOLDER, metavar="DIR")
    @answering
    def pull(model: str, folder: Path) -> None:
        """Download a promoted model to DIR, a folder for open_clip; every byte is compared."""
        from study.models.ship import check_empty

        check_empty(folder)
        services = _services(home())
        from study.models.catalog import read_version
        from study.models.ship import pull as download

        version = read_version(services.bucket, model)
        download(version, folder, say)
        click.echo(f"pulled     {version.model} version {version.version} to {folder}")
        click.echo(f"sha256     {version.weights.sha256}  (compared)")
        click.echo(f'use        open_clip.create_model_and_transforms("local-dir:{folder}")')

    @main.command()
    @click.argument("first", metavar="A")
    @click.argument("second", metavar="B")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def diff(first: str, second: str, as_json: bool) -> None:
        """What differs between two versions (NAME@champion, NAME@3) or two trials (STUDY/5)."""
        from study.models.table import TRIAL, differences, differences_table, facts_of
        from study.store.database import database_url

        services = None if all(TRIAL.match(each) for each in (first, second)) else _services(home())
        bucket, url = services.bucket if services else "", database_url(home())
        found = differences(*(facts_of(each, bucket=bucket, database=url) for each in (first, second)))
        if as_json:
            click.echo(json.dumps({"a": first, "b": second, "differences": found}, indent=2))
        elif not found:
            click.echo(f"{first} and {second} do not differ")
        else:
            from study.console import wide_console

            wide_console().print(differences_table((first, second), found))

    @main.command()
    @click.argument("study", required=False)
    @click.option("--top", type=click.IntRange(min=1), help="Keep the weights of so many of the study's trials, and of "
                  "its Pareto front.  [default: of every trial]")  # fmt: skip
    @click.option("--unknown", is_flag=True, help="Also studies that this database does not have; another one may.")
    @click.option("--dry-run", is_flag=True, help="List only; the default.")
    @click.option("--yes", is_flag=True, help="Delete.")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def gc(study: str | None, top: int | None, unknown: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
        """List what nothing needs any more (checkpoints of STUDY, unfinished versions, the cache); --yes deletes."""
        from study.errors import UserError

        if dry_run and yes:
            raise UserError("--dry-run and --yes contradict each other")
        if top is not None and study is None:
            raise UserError("--top: say of which STUDY")
        services = _services(home())
        from study.operations.gc import as_record, delete, gc_lines, look
        from study.store.database import database_url

        url = database_url(home())
        found = look(url, services.bucket, study, top=top)
        gone = None
        if yes:
            gone = delete(url, services.bucket, study, top=top, strangers=unknown, say=say)
        if as_json:
            click.echo(json.dumps(as_record(found, gone), indent=2))
            return
        for line in gc_lines(found, gone, study=study, unknown=unknown):
            click.echo(line)
