"""What a person sees of a promotion: the gates, the final sets, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infra.services import Services
from study.champion import model_prefix
from study.console import accuracy_table, percent
from study.promotion import Promotion
from study.proof_names import UNMODIFIED, trial_label

__all__ = ["gates_table", "show_promotion"]

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
        table.add_row(gate["name"], MARKS[gate["verdict"]], escape(gate["found"]), escape(gate["needed"]))
    return table


def show_promotion(console: Console, promotion: Promotion, services: Services) -> None:
    """All of it, for a terminal."""
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


def _seeds_line(seeds: Mapping[str, Any]) -> str:
    parts: Sequence[str] = [
        f"{name.removesuffix('_accuracy')} {percent(each['mean'])}"
        + ("" if each["low"] is None else f" [{100 * each['low']:.1f}, {100 * each['high']:.1f}]")
        + ("" if each["deviation"] is None else f", deviation {100 * each['deviation']:.1f}")
        for name, each in seeds["summary"].items()
    ]
    number = len(seeds["measured"])
    return escape(f"{number} fresh seeds on the confirm sets: {'; '.join(parts)}; shipped: {seeds['shipped']}")
