"""`agft promote` and `agft rollback`: light to import, as the whole command line is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.errors import ServiceError
from study.console import Clock
from study.errors import UserError

if TYPE_CHECKING:
    from infra.cluster.cluster import Cluster
    from infra.services import Services
    from study.models.manifest import Manifest, Seeds
    from study.models.registry import RunOf
    from study.promotion.records import Order, Promotion
    from study.store.store import StudyStore


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
        from study.store.database import database_url
        from study.store.store import StudyStore

        store = StudyStore(database_url(home()), study)
        spec = store.load().spec  # an unknown name is answered before anything is started
        _check(dry_run=dry_run, final=final, force=force, reason=reason)
        from study.promotion.candidates import candidates as check_candidates
        from study.promotion.candidates import preference_of
        from study.spec.files import load_policy

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

        if repair:
            sys.exit(repair_here(store, home()))
        from study.promotion.records import Order

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


# What a person sees of a promotion: the gates, the final sets, and what became of it.

MARKS = {"passed": "[green]passed[/]", "failed": "[bold red]FAILED[/]", "not applicable": "[dim]not applicable[/]"}


def gates_table(promotion: Promotion) -> Table:
    """One row a gate."""
    against = f"champion version {promotion.champion}" if promotion.champion is not None else "no champion yet"
    title = f"gates of trial {promotion.trial} on the confirm sets ({against})"
    table = Table(title=title, title_justify="left")
    table.add_column("gate", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found")
    table.add_column("needed")
    for gate in promotion.gates:
        table.add_row(gate.name, MARKS[gate.verdict], escape(gate.found), escape(gate.needed))
    return table


def show_promotion(console: Console, promotion: Promotion, services: Services) -> None:
    """All of it, for a terminal."""
    from study.cli.tables import accuracy_table
    from study.models.manifest import UNMODIFIED, trial_label

    console.print()
    console.print(gates_table(promotion))
    if promotion.seeds:
        console.print(_seeds_line(promotion.seeds))
    if promotion.final:
        label = trial_label(promotion.trial or 0)
        rows = {UNMODIFIED: promotion.final[UNMODIFIED], label: promotion.final[label]}
        console.print(accuracy_table("final sets (seen by neither fine-tuning nor search)", rows))
        console.print(f"the study's final sets were looked at {_times(promotion.final_accesses)}")
    console.print(f"promotion: {promotion.state}: {escape(promotion.reason)}", soft_wrap=True)
    console.print("\n".join(_ending(promotion, services)), soft_wrap=True, markup=False)


def _ending(promotion: Promotion, services: Services) -> list[str]:
    from study.models.head import model_prefix

    lines: list[str] = []
    if promotion.state.startswith("would"):
        lines += ["dry run: nothing was written, registered or moved"
                  + ("" if promotion.final else "; the final sets were not looked at")]  # fmt: skip
    if promotion.state == "promoted":
        lines += [
            f"champion: {promotion.model} version {promotion.version}, {promotion.uri}/",
            f"sha256:   {promotion.sha256}",
        ]
        if not promotion.registry:
            lines.append(f"MLflow:   {services.mlflow_uri}/#/models/{promotion.model}")
    elif promotion.champion is not None:
        lines.append(f"champion stays: {model_prefix(services.bucket, promotion.model, promotion.champion)}/")
    if promotion.state == "refused":
        lines.append(f"to promote it all the same: agft promote {promotion.study} --force --reason TEXT")
    if promotion.registry:
        lines += registry_lines(promotion.registry, f"agft promote {promotion.study} --repair")
    return lines


def registry_lines(problem: str, command: str) -> list[str]:
    """What is wrong with MLflow's view of a champion that stands, and what to run."""
    return [f"MLflow was not told: {problem}", f"the champion in S3 stands; when MLflow is back: {command}"]


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _seeds_line(seeds: Seeds) -> str:
    from study.console import percent

    parts: Sequence[str] = [
        f"{name.removesuffix('_accuracy')} {percent(each.mean)}"
        + ("" if each.low is None or each.high is None else f" [{100 * each.low:.1f}, {100 * each.high:.1f}]")
        + ("" if each.deviation is None else f", deviation {100 * each.deviation:.1f}")
        for name, each in seeds.summary.items()
    ]
    number = len(seeds.measured)
    return escape(f"{number} fresh seeds on the confirm sets: {'; '.join(parts)}; shipped: {seeds.shipped}")


# One `agft promote` or `agft rollback` on this machine: services, Ray, the decision, and what a person sees of it.

CLOSE_SECONDS = 60.0


def promote_here(store: StudyStore, home: Path, order: Order, *, as_json: bool) -> int:
    """`agft promote`: decide about the champion; the exit code."""
    from study.console import wide_console
    from study.session import cluster_here, services_here

    clock = Clock(aside=as_json)
    services = services_here(home, clock)
    try:
        with cluster_here(clock) as cluster:
            promotion = promote_on(store, services, cluster, clock, order)
    except KeyboardInterrupt:
        clock("stopped; nothing was moved, what is measured is kept. Go on with the same command")
        return 1
    if as_json:
        print(json.dumps(promotion.record(), indent=2))
    else:
        show_promotion(wide_console(), promotion, services)
    return promotion.exit_code


def promote_on(
    store: StudyStore, services: Services, cluster: Cluster, clock: Clock, order: Order | None = None
) -> Promotion:
    """Promote on a cluster that is connected."""
    from study.evaluation.calibration import version_facts
    from study.models.card import card_files
    from study.promotion.promote import promote
    from study.promotion.records import Order, Site

    facts = partial(version_facts, say=clock)
    site = Site(services.bucket, services.mlflow_uri, cluster, clock, run_of(store, services), card_files, facts)
    return promote(store, order or Order(), site)


def run_of(store: StudyStore, services: Services) -> RunOf:
    """From a manifest of this study to the study's MLflow run, which is made if MLflow does not have it."""
    from infra.tracking.runs import Tracker
    from study.tracking import EXPERIMENT, project_study, study_key

    study = store.load()

    def found(manifest: Manifest) -> str | None:
        if manifest.study_key != study_key(study):
            return None
        tracker = Tracker(services.mlflow_uri, EXPERIMENT)
        try:
            project_study(tracker, study, reopen=False)
            tracker.flush(CLOSE_SECONDS)
            run_id = tracker.run_id(study_key(study))
        finally:
            tracker.close(1.0)
        if run_id is None:
            raise ServiceError(f"MLflow at {services.mlflow_uri} does not answer")
        return run_id

    return found


def repair_here(store: StudyStore, home: Path) -> int:
    """`agft promote STUDY --repair`: MLflow's registry in line with HEAD; nothing is decided."""
    from study.models.head import read_head
    from study.models.registry import follow_head
    from study.session import services_here

    clock = Clock()
    study = store.load()
    services, name = services_here(home, clock), study.spec.promote.model_name
    if read_head(services.bucket, name)[0].champion is None:
        print(f"{name} has no champion yet")
        return 0
    head = follow_head(services.bucket, name, services.mlflow_uri, run_of(store, services))
    print(f"MLflow says what HEAD says: {name} champion is version {head.champion}, previous {head.previous or 'none'}")
    return 0


def rollback_here(home: Path, name: str | None, *, to: int | None, reason: str, as_json: bool) -> int:
    """`agft rollback`: the exit code."""
    from study.models.rollback import chosen_name, roll_back
    from study.session import services_here

    clock = Clock(aside=as_json)
    services = services_here(home, clock)
    name = chosen_name(services.bucket, name)
    done = roll_back(services.bucket, name, to=to, reason=reason, tracking_uri=services.mlflow_uri)
    if as_json:
        print(json.dumps({**vars(done), "moved": done.moved}, indent=2))
        return done.exit_code
    if done.moved:
        print(f"rolled back: {name} version {done.champion} is the champion again, generation {done.generation}; "
              f"version {done.before} is what it was before")  # fmt: skip
    else:
        print(f"{name} version {done.champion} is the champion already; nothing was moved")
    print(f"champion: {done.uri}/")
    if done.registry:
        print("\n".join(registry_lines(done.registry, f"agft rollback {name} --to {done.champion}")))
    return done.exit_code
