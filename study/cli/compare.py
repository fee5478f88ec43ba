"""`agft compare`: light to import, as the whole command line is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from study.comparison.file import Comparison


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the command. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
    @click.option("--plan", "plan_only", is_flag=True, help="Check the file and show what would run; start nothing.")
    @click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the report; default: in the AGFT home.",
    )
    @answering
    def compare(file: Path, plan_only: bool, out: Path | None) -> None:
        """Compare methods: an equal search each, fresh seeds, final sets; run again to go on."""
        from study.artifacts.datasets import check_ready
        from study.comparison.file import load_comparison

        comparison = load_comparison(file)
        check_ready(comparison.shared())
        if plan_only:
            click.echo(plan_text(comparison))
            return
        from study.comparison.run import compare_here

        sys.exit(compare_here(comparison, home(), out))


def plan_text(comparison: Comparison) -> str:
    """What a comparison would run."""
    from study.plan.cost import update_passes

    shared, seeds = comparison.shared(), comparison.seeds
    trials = shared.budget.trials
    lines = [
        f"comparison {comparison.name}: {len(comparison.searches)} methods x ({trials} trials + {len(seeds)} seeds) = "
        f"{len(comparison.searches) * (trials + len(seeds))} runs of {shared.train.epochs} epochs",
        f"  search on    {', '.join(shared.data.dev)}",
        f"  measured on  {', '.join(shared.data.final)}: {len(comparison.searches) * len(seeds)} checkpoints and the "
        "unmodified CLIP",
        f"  seeds        {', '.join(map(str, seeds))}; differences to {comparison.reference}",
    ]
    for label, study in comparison.searches.items():
        cost = update_passes(study.method.model_dump(mode="json"), study.attack.model_dump(mode="json"))
        lines.append(
            f"  {label:<12} {study.method.name}, {study.attack.steps} attack steps, {cost['total']:g} encoder "
            f"passes an image; searched: {', '.join(study.search) or 'nothing'}"
        )
    return "\n".join(lines)
