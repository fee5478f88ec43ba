"""`agft models`, `pull`, `diff`, `gc`: promoted models, and what else lies in the bucket."""

from __future__ import annotations

from pathlib import Path

import click

from study.cli.edge import PLACE, connected, database, json_option, print_json
from study.console import say
from study.errors import UserError


@click.command()
@click.argument("name", required=False)
@click.option("--repair", is_flag=True, help="Register in MLflow what it lacks, and set its aliases.")
@json_option
def models(name: str | None, repair: bool, as_json: bool) -> None:
    """Promoted models: versions, champion and previous, where they are from, how good they are."""
    services = connected()
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
        print_json(found)
        return
    if not found:
        click.echo("no model was promoted yet; agft promote STUDY does")
    for facts in found:
        wide_console().print(models_table(facts))
        for line in difference_lines(facts):
            click.echo(line)


@click.command()
@click.argument("model", metavar="NAME[@champion|@previous|@N]")
@click.argument("folder", type=PLACE, metavar="DIR")
def pull(model: str, folder: Path) -> None:
    """Download a promoted model to DIR, a folder for open_clip; every byte is compared."""
    from study.models.ship import check_empty

    check_empty(folder)
    services = connected()
    from study.models.catalog import read_version
    from study.models.ship import pull as download

    version = read_version(services.bucket, model)
    download(version, folder, say)
    click.echo(f"pulled     {version.name} version {version.number} to {folder}")
    click.echo(f"sha256     {version.manifest['weights']['sha256']}  (compared)")
    click.echo(f'use        open_clip.create_model_and_transforms("local-dir:{folder}")')


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@json_option
def diff(first: str, second: str, as_json: bool) -> None:
    """What differs between two versions (NAME@champion, NAME@3) or two trials (STUDY/5)."""
    from study.models.table import TRIAL, differences, differences_table, facts_of

    services = None if all(TRIAL.match(each) for each in (first, second)) else connected()
    bucket, url = services.bucket if services else "", database()
    found = differences(*(facts_of(each, bucket=bucket, database=url) for each in (first, second)))
    if as_json:
        print_json({"a": first, "b": second, "differences": found})
    elif not found:
        click.echo(f"{first} and {second} do not differ")
    else:
        from study.console import wide_console

        wide_console().print(differences_table((first, second), found))


@click.command()
@click.argument("study", required=False)
@click.option("--top", type=click.IntRange(min=1), help="Keep the weights of so many of the study's trials, and of "
              "its Pareto front.  [default: of every trial]")  # fmt: skip
@click.option("--unknown", is_flag=True, help="Also studies that this database does not have; another one may.")
@click.option("--dry-run", is_flag=True, help="List only; the default.")
@click.option("--yes", is_flag=True, help="Delete.")
@json_option
def gc(study: str | None, top: int | None, unknown: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """List what nothing needs any more (checkpoints of STUDY, unfinished versions, the cache); --yes deletes."""
    if dry_run and yes:
        raise UserError("--dry-run and --yes contradict each other")
    if top is not None and study is None:
        raise UserError("--top: say of which STUDY")
    services = connected()
    from study.operations.gc import as_record, delete, gc_lines, look

    url = database()
    found = look(url, services.bucket, study, top=top)
    gone = None
    if yes:
        gone = delete(url, services.bucket, study, top=top, strangers=unknown, say=say)
    if as_json:
        print_json(as_record(found, gone))
        return
    for line in gc_lines(found, gone, study=study, unknown=unknown):
        click.echo(line)
