"""`agft promote` and `agft rollback`: light to import, as the whole command line is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from study.errors import UserError

__all__ = ["attach"]

FILE = click.Path(dir_okay=False, path_type=Path)


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the commands. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.argument("study")
    @click.option("--trial", type=click.IntRange(min=0), help="This trial, of full length; no other is compared.")
    @click.option("--candidates", type=click.IntRange(min=1), help="So many of the best trials are compared.  "
                  "[default: promote.candidates]")  # fmt: skip
    @click.option("--preference", help="Of a goal with several metrics: 'robust=0.7,clean=0.3', or 'max robust with "
                  "clean >= clip - 0.05'.")  # fmt: skip
    @click.option("--policy", type=FILE, help="A YAML file with gates, instead of the study's promote.gates.")
    @click.option("--seeds", type=click.IntRange(min=0), help="Train the winner again with so many fresh seeds.  "
                  "[default: promote.seeds]")  # fmt: skip
    @click.option("--dry-run", is_flag=True, help="Decide and change nothing; the final sets stay unseen.")
    @click.option("--final", is_flag=True, help="With --dry-run: look at the final sets all the same; it counts.")
    @click.option("--force", is_flag=True, help="Promote although a gate fails; needs --reason.")
    @click.option("--reason", help="Why; on record in the manifest, HEAD's history and MLflow.")
    @click.option("--repair", is_flag=True, help="Decide nothing: bring MLflow's aliases in line with the champion.")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def promote(
        study: str, trial: int | None, candidates: int | None, preference: str | None, policy: Path | None,
        seeds: int | None, dry_run: bool, final: bool, force: bool, reason: str | None, repair: bool, as_json: bool,
    ) -> None:  # fmt: skip
        """Prove the best trials on unseen data, and make the winner the champion if it passes every gate.

        Exit code 0: promoted, or the champion is kept; 1: a gate refused, or MLflow was not told; 2: wrong input.
        """
        from study.database import database_url
        from study.store import StudyStore

        store = StudyStore(database_url(home()), study)
        spec = store.load().spec  # an unknown name is answered before anything is started
        _check(dry_run=dry_run, final=final, force=force, reason=reason)
        from study.candidates import candidates as check_candidates
        from study.candidates import preference_of
        from study.promote_policy import load_policy

        gates = spec.promote.gates if policy is None else load_policy(policy)
        count = spec.promote.seeds if seeds is None else seeds
        if gates.max_seed_spread and count < 2 and not dry_run:
            raise UserError(f"max_seed_spread: a spread needs --seeds 2 or more; {count} asked for")
        if spec.promote.ship == "median" and count < 3:
            raise UserError(f"--seeds: promote.ship: median needs 3 or more; {count} asked for")
        if not repair:
            check_candidates(
                store.load(), store.trials(), count=candidates or spec.promote.candidates, number=trial,
                preference=preference_of(spec, preference),
            )  # fmt: skip
        from study.promote_session import promote_here, repair_here

        if repair:
            sys.exit(repair_here(store, home()))
        from study.promotion import Order

        order = Order(
            trial=trial, candidates=candidates, preference=preference, gates=gates, seeds=seeds, dry_run=dry_run,
            final=final, force=(reason or "").strip() if force else None,
        )  # fmt: skip
        sys.exit(promote_here(store, home(), order, as_json=as_json))

    @main.command()
    @click.argument("name", required=False)
    @click.option("--to", type=click.IntRange(min=1), help="This version.  [default: the previous champion]")
    @click.option("--reason", default="", help="Why; on record in HEAD's history.")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def rollback(name: str | None, to: int | None, reason: str, as_json: bool) -> None:
        """Make an earlier version the champion again, as a new generation; MLflow's aliases follow.

        NAME is the model's; it may be left out where there is only one.
        """
        from study.promote_session import rollback_here

        sys.exit(rollback_here(home(), name, to=to, reason=reason, as_json=as_json))


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
