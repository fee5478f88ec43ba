"""`agft plan`: light to import, as the whole command line is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

POSITIVE = click.FloatRange(min=0, min_open=True)


def attach(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the command. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
    @click.option("--suite", help="What measuring one model on it costs: a suite's name, or a FILE.yaml.")
    @click.option("--clean", type=click.FloatRange(0, 1), default=0.6, show_default=True,
                  help="Share of images expected right without attack.")  # fmt: skip
    @click.option("--robust", type=click.FloatRange(0, 1), default=0.4, show_default=True,
                  help="Share expected right under every attack: the others are soon settled.")  # fmt: skip
    @click.option("--measure", metavar="MODEL", help="Hours: time MODEL, as of `agft evaluate`, on this machine.")
    @click.option("--seconds-per-pass", type=POSITIVE, help="Hours: of one image, forward or backward.")
    @click.option("--tflops", type=POSITIVE, help="Hours: TFLOP/s that a device is assumed to sustain in fp32.")
    @click.option("--arch", help="Whose FLOPs.  [default: the study's]")
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def plan(
        file: Path | None, suite: str | None, clean: float, robust: float, measure: str | None,
        seconds_per_pass: float | None, tflops: float | None, arch: str | None, as_json: bool,
    ) -> None:  # fmt: skip
        """Show what a study would do, or what measuring a model on a suite costs, without starting anything.

        Costs are passes of images through the encoder. They become hours by one of --measure, --seconds-per-pass and
        --tflops; with FILE and --suite, the suite stands beside the study's training.
        """
        from study.errors import UserError

        if file is None and suite is None:
            raise UserError("FILE or --suite: one is required, a study file or a suite to plan")
        if robust > clean:
            raise UserError(f"--robust: {robust:g} is more than --clean {clean:g}; an attack makes no image right")
        timing: dict[str, Any] = {"measure": measure, "seconds": seconds_per_pass, "tflops": tflops, "arch": arch}
        if suite is None and any(each is not None for each in timing.values()):
            raise UserError("--measure, --seconds-per-pass, --tflops and --arch tell a suite's hours: name a --suite")
        study = None if file is None else study_plan(file, home())
        timing["arch"] = arch or (study and study["arch"])
        cost = None if suite is None else suite_cost(suite, clean, robust, timing, home())
        if as_json:
            click.echo(json.dumps({"study": study, "suite": cost} if cost else study, indent=2))
        else:
            click.echo(text_of(study, cost))


def suite_cost(named: str, clean: float, robust: float, timing: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """Of a suite by name or file; `timing`: what `chosen_rate` is told."""
    from study.plan.cost import Assumed, cost_of
    from study.plan.rate import chosen_rate
    from study.spec.suite import load_suite

    suite = load_suite(named)
    return cost_of(suite, Assumed(clean, robust), chosen_rate(**timing, home=home))


def text_of(study: dict[str, Any] | None, cost: dict[str, Any] | None) -> str:
    """For a person."""
    from study.plan.cost import cost_text
    from study.plan.study import plan_text

    found = [] if study is None else [plan_text(study)]
    if cost is not None:
        found.append(cost_text(cost, None if study is None else study["passes"]["training"]))
    return "\n".join(found)


def study_plan(file: Path, home: Path) -> dict[str, Any]:
    """Of a study file that is right and whose data are here."""
    from study.artifacts.datasets import check_ready
    from study.plan.study import plan_of
    from study.spec.files import load_study

    spec = load_study(file)
    check_ready(spec)
    return plan_of(spec, home)
