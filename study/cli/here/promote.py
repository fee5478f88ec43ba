"""Promote on this machine: services, Ray, the decision; and what a person sees of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.cluster.cluster import Cluster
from infra.services import Services
from study.cli.here.events import tell
from study.cli.here.registry import registry_lines, run_of
from study.cli.tables import accuracy_table
from study.console import Clock, percent, wide_console
from study.evaluation.calibration import version_facts
from study.models.card import card_files
from study.models.head import model_prefix
from study.models.manifest import UNMODIFIED, Seeds, trial_label
from study.models.signing import sign
from study.promotion.promote import promote
from study.promotion.records import Order, Promotion, Site
from study.session import cluster_here, services_here
from study.store.store import StudyStore


def promote_here(store: StudyStore, home: Path, order: Order, *, key: Path | None = None, as_json: bool) -> int:
    """`agft promote`: decide about the champion; the exit code. `key`: a private key to sign it with."""
    clock = Clock(aside=as_json)
    services = services_here(home, clock)
    try:
        with cluster_here(clock) as cluster:
            promotion = promote_on(store, services, cluster, clock, order, key=key)
    except KeyboardInterrupt:
        clock("stopped; nothing was moved, what is measured is kept. Go on with the same command")
        return 1
    if as_json:
        print(json.dumps(promotion.record(), indent=2))
    else:
        show_promotion(wide_console(), promotion, services)
    return promotion.exit_code


def promote_on(
    store: StudyStore, services: Services, cluster: Cluster, clock: Clock, order: Order | None = None, *,
    key: Path | None = None,
) -> Promotion:  # fmt: skip
    """Promote on a cluster that is connected."""
    facts = partial(version_facts, say=clock)
    signing = None if key is None else partial(sign, key=key)
    site = Site(
        services.bucket, services.mlflow_uri, cluster, clock, run_of(store, services), card_files, facts, signing
    )
    promotion = promote(store, order or Order(), site)
    if promotion.state in ("promoted", "refused"):
        told = {
            "study": promotion.study, "trial": promotion.trial, "version": promotion.version, "uri": promotion.uri,
            "sha256": promotion.sha256, "forced": promotion.forced, "reason": promotion.reason,
            "failed_gates": [gate.name for gate in promotion.gates if gate.verdict == "failed"],
        }  # fmt: skip
        tell(services, promotion.state, promotion.model, told, clock)
    return promotion


# --- what a person sees: the gates, the final sets, and what became of it ---------------------------------------------

MARKS = {"passed": "[green]passed[/]", "failed": "[bold red]FAILED[/]", "not applicable": "[dim]not applicable[/]"}


def gates_table(promotion: Promotion) -> Table:
    """One row a gate."""
    against = f"champion version {promotion.champion}" if promotion.champion is not None else "no champion yet"
    if look := promotion.look:
        against += f"; look {look.number}, level {100 * look.level:.2g} % over {look.hypotheses} hypotheses"
    final = " and the final sets" if any(gate.name.startswith("final ") for gate in promotion.gates) else ""
    title = f"gates of trial {promotion.trial} on the confirm sets{final} ({against})"
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
    console.print()
    for tried in promotion.tried:
        console.print(escape(f"trial {tried.trial} is refused: {tried.reason}"), soft_wrap=True)
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
    lines: list[str] = []
    if promotion.state.startswith("would"):
        lines += ["dry run: nothing was shipped, registered or moved"
                  + ("" if promotion.look is None else f"; look {promotion.look.number} at the confirm sets is counted")
                  + ("" if promotion.final else "; the final sets were not looked at")]  # fmt: skip
    if promotion.state == "promoted":
        lines += [
            f"champion: {promotion.model} version {promotion.version}, {promotion.uri}/",
            f"sha256:   {promotion.sha256}",
        ]
        if not promotion.registry:
            lines.append(f"MLflow:   {services.mlflow_uri}/#/models/{promotion.model}")
    elif promotion.state == "held":
        lines += [
            f"shipped, and not the champion yet: {promotion.uri}/",
            f"another person: agft approve {promotion.model} {promotion.version} --reason TEXT",
        ]
    elif promotion.champion is not None:
        lines.append(f"champion stays: {model_prefix(services.bucket, promotion.model, promotion.champion)}/")
    if promotion.state == "refused":
        lines.append(f"to promote it all the same: agft promote {promotion.study} --force --reason TEXT")
    if promotion.registry:
        lines += registry_lines(promotion.registry, f"agft promote {promotion.study} --repair")
    return lines


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _seeds_line(seeds: Seeds) -> str:
    parts: Sequence[str] = [
        f"{name.removesuffix('_accuracy')} {percent(each.mean)}"
        + ("" if each.low is None or each.high is None else f" [{100 * each.low:.1f}, {100 * each.high:.1f}]")
        + ("" if each.deviation is None else f", deviation {100 * each.deviation:.1f}")
        for name, each in seeds.summary.items()
    ]
    number = len(seeds.measured)
    return escape(f"{number} fresh seeds on the confirm sets: {'; '.join(parts)}; shipped: {seeds.shipped}")
