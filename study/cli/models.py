"""`agft promote`, `rollback`, `models`, `pull`, `diff`, `gc`: promoted models, and what else lies in the bucket."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from study.cli.edge import FILE, PLACE, connected, database, home, json_option, print_json, store_of
from study.console import say
from study.errors import UserError

REQUIRED = click.option(
    "--require-signature", "public_key", type=FILE, envvar="AGFT_PUBLIC_KEY", metavar="PUBLIC_KEY", help="Refuse what "
    "this key's owner has not signed.  [default: AGFT_PUBLIC_KEY, if set]",
)  # fmt: skip


@click.command()
@click.argument("study")
@click.option("--trial", type=click.IntRange(min=0), help="This trial, of full length; no other is compared.")
@click.option("--candidates", type=click.IntRange(min=1), help="So many of the best trials are compared.  "
              "[default: promote.candidates]")  # fmt: skip
@click.option("--preference", help="Of a goal with several metrics: 'robust=0.7,clean=0.3', or 'max robust with "
              "clean >= clip - 0.05'.")  # fmt: skip
@click.option("--policy", type=FILE, help="A YAML file with gates, instead of the study's promote.gates.")
@click.option("--seeds", type=click.IntRange(min=0), help="Train the winner again with so many fresh seeds.  "
              "[default: promote.seeds]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Decide and change nothing; the final sets stay unseen. The look at the "
              "confirm sets counts: what it tells is told.")  # fmt: skip
@click.option("--final", is_flag=True, help="With --dry-run: look at the final sets all the same; it counts.")
@click.option("--force", is_flag=True, help="Promote although a gate fails; needs --reason.")
@click.option("--reason", help="Why; on record in the manifest, HEAD's history and MLflow.")
@click.option(
    "--hold", is_flag=True, help="Decide and ship, and let another person make it the champion: agft approve."
)
@click.option("--sign", "key", type=FILE, metavar="KEY", help="Sign what is promoted with this private key (PEM, "
              "ECDSA); its password in AGFT_SIGNING_PASSWORD.")  # fmt: skip
@click.option("--repair", is_flag=True, help="Decide nothing: bring MLflow's aliases in line with the champion.")
@json_option
def promote(
    study: str, trial: int | None, candidates: int | None, preference: str | None, policy: Path | None,
    seeds: int | None, dry_run: bool, final: bool, force: bool, reason: str | None, hold: bool, key: Path | None,
    repair: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prove the best trials on unseen data, and make the winner the champion if it passes every gate.

    If a gate refuses the best candidate, the next one is tried. Every comparison with a champion is counted, and the
    later one is, the more it has to show.

    Exit code 0: promoted, or the champion is kept; 1: refused, or MLflow was not told; 2: wrong input.
    """
    store = store_of(study)
    _check(dry_run=dry_run, final=final, force=force, reason=reason)
    from study.promotion.candidates import candidates as check_candidates
    from study.promotion.candidates import check_weights, preference_of
    from study.spec.files import load_policy

    if key is not None:
        from study.models.signing import check_private_key

        check_private_key(key)
    spec = store.load().spec
    gates = spec.promote.gates if policy is None else load_policy(policy)
    count = spec.promote.seeds if seeds is None else seeds
    if gates.max_seed_spread and count < 2 and not dry_run:
        raise UserError(f"max_seed_spread: a spread needs --seeds 2 or more; {count} asked for")
    if spec.promote.ship == "median" and count < 3:
        raise UserError(f"--seeds: promote.ship: median needs 3 or more; {count} asked for")
    if repair:
        from study.cli.here.registry import repair_here

        sys.exit(repair_here(store, home()))
    check_weights(spec, preference_of(spec, preference))
    check_candidates(
        store.load(), store.trials(), count=candidates or spec.promote.candidates, number=trial,
        preference=preference_of(spec, preference),
    )  # fmt: skip
    from study.cli.here.promote import promote_here
    from study.promotion.records import Order

    order = Order(
        trial=trial, candidates=candidates, preference=preference, gates=gates, seeds=seeds, dry_run=dry_run,
        final=final, force=(reason or "").strip() if force else None, hold=hold,
    )  # fmt: skip
    sys.exit(promote_here(store, home(), order, key=key, as_json=as_json))


def _check(*, dry_run: bool, final: bool, force: bool, reason: str | None) -> None:
    """Options that need each other."""
    if force and not (reason or "").strip():
        raise UserError("--force: needs --reason TEXT, which is recorded with the version")
    if reason is not None and not force:
        raise UserError("--reason: says why a gate is overruled; it goes with --force")
    if final and not dry_run:
        raise UserError("--final: goes with --dry-run; a promotion looks at the final sets anyway")
    if force and dry_run:
        raise UserError("--force: a dry run only says what the gates decide")


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why; on record in HEAD's history, with who decided and who approved.")
@json_option
def approve(name: str, version: int, reason: str, as_json: bool) -> None:
    """Make a version the champion that another person's `agft promote --hold` has decided about.

    Refused to whoever decided, and where the champion is not the one any more that it was compared with.
    """
    from study.cli.here.registry import approve_here

    sys.exit(approve_here(home(), name, version, reason=reason, as_json=as_json))


@click.command()
@click.argument("name", required=False)
@click.option("--to", type=click.IntRange(min=1), help="This version.  [default: the previous champion]")
@click.option("--reason", default="", help="Why; on record in HEAD's history.")
@json_option
def rollback(name: str | None, to: int | None, reason: str, as_json: bool) -> None:
    """Make an earlier version the champion again, as a new generation; MLflow's aliases follow.

    NAME is the model's; it may be left out where there is only one.
    """
    from study.cli.here.registry import rollback_here

    sys.exit(rollback_here(home(), name, to=to, reason=reason, as_json=as_json))


@click.command()
@click.argument("name", required=False)
@click.option("--repair", is_flag=True, help="Register in MLflow what it lacks, and set its aliases.")
@REQUIRED
@json_option
def models(name: str | None, repair: bool, public_key: Path | None, as_json: bool) -> None:
    """Promoted models: versions, champion and previous, where they are from, how good they are."""
    if public_key is not None:
        from study.models.signing import check_public_key

        check_public_key(public_key)
    from infra.services import names_storage
    from infra.stack.stack import status

    if not names_storage(os.environ) and not status(home()):  # nothing was ever started here
        tell_none(as_json=as_json)
        return
    services = connected(start=repair)
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
    if public_key is not None:
        from study.models.catalog import read_version
        from study.models.signing import check_version

        for each in chosen:
            check_version(read_version(services.bucket, each), public_key)
            say(f"{each}: the champion's signature holds with {public_key}")
    found = all_facts(services.bucket, chosen, services.mlflow_uri)
    if as_json:
        print_json(found)
        return
    if not found:
        tell_none(as_json=False)
    for facts in found:
        wide_console().print(models_table(facts))
        for line in difference_lines(facts):
            click.echo(line)


def tell_none(*, as_json: bool) -> None:
    """That there is no model."""
    click.echo("[]" if as_json else "no model was promoted yet; agft promote STUDY does")


@click.command()
@click.argument("model", metavar="NAME[@champion|@previous|@N]")
@click.argument("folder", type=PLACE, metavar="DIR")
@REQUIRED
@json_option
def pull(model: str, folder: Path, public_key: Path | None, as_json: bool) -> None:
    """Download a promoted model to DIR, a folder for open_clip; every byte is compared."""
    from study.models.ship import check_empty
    from study.models.signing import check_public_key

    check_empty(folder)
    if public_key is not None:
        check_public_key(public_key)
    services = connected(start=False)
    from study.models.catalog import read_version
    from study.models.ship import pull as download

    version = read_version(services.bucket, model)
    download(version, folder, say, public_key=public_key)
    load = f'open_clip.create_model_and_transforms("local-dir:{folder}")'
    if as_json:
        print_json({"model": version.model, "version": version.version, "folder": str(folder),
                    "sha256": version.weights.sha256, "signed": public_key is not None, "use": load})  # fmt: skip
        return
    click.echo(f"pulled     {version.model} version {version.version} to {folder}")
    click.echo(f"sha256     {version.weights.sha256}  (compared)")
    if public_key is not None:
        click.echo(f"signature  holds with {public_key}")
    click.echo(f"use        {load}")


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@json_option
def diff(first: str, second: str, as_json: bool) -> None:
    """What differs between two versions (NAME@champion, NAME@3) or two trials (STUDY/5)."""
    from study.models.table import TRIAL, differences, differences_table, facts_of

    services = None if all(TRIAL.match(each) for each in (first, second)) else connected(start=False)
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
    services = connected(start=yes)
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
