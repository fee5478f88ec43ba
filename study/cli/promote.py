"""`agft promote` and `agft rollback`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from study.cli.edge import FILE, home, json_option, store_of
from study.errors import UserError


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
@click.option("--repair", is_flag=True, help="Decide nothing: bring MLflow's aliases in line with the champion.")
@json_option
def promote(
    study: str, trial: int | None, candidates: int | None, preference: str | None, policy: Path | None,
    seeds: int | None, dry_run: bool, final: bool, force: bool, reason: str | None, repair: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prove the best trials on unseen data, and make the winner the champion if it passes every gate.

    If a gate refuses the best candidate, the next one is tried. Every comparison with a champion is counted, and the
    later one is, the more it has to show.

    Exit code 0: promoted, or the champion is kept; 1: refused, or MLflow was not told; 2: wrong input.
    """
    store = store_of(study)
    _check(dry_run=dry_run, final=final, force=force, reason=reason)
    from study.promotion.candidates import candidates as check_candidates
    from study.promotion.candidates import preference_of
    from study.spec.files import load_policy

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
    check_candidates(
        store.load(), store.trials(), count=candidates or spec.promote.candidates, number=trial,
        preference=preference_of(spec, preference),
    )  # fmt: skip
    from study.cli.here.promote import promote_here
    from study.promotion.records import Order

    order = Order(
        trial=trial, candidates=candidates, preference=preference, gates=gates, seeds=seeds, dry_run=dry_run,
        final=final, force=(reason or "").strip() if force else None,
    )  # fmt: skip
    sys.exit(promote_here(store, home(), order, as_json=as_json))


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
