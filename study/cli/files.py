"""`agft init`, `validate`, `plan`, `compare`: what is written in files, checked and planned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from study.cli.edge import FILE, FOLDER, POSITIVE, home, json_option, print_json, tell
from study.console import counted
from study.errors import USER_ERRORS, UserError

if TYPE_CHECKING:
    from study.comparison.file import Comparison


class PresetName(click.Choice[str]):
    """Presets come with methods, which installed packages may add: asked for when a command needs them."""

    @property
    def choices(self) -> tuple[str, ...]:
        from trainers.objectives.presets import PRESETS

        return tuple(PRESETS)

    @choices.setter
    def choices(self, given: object) -> None:
        """click's own choice sets what it was made with: nothing."""


class RecipeName(PresetName):
    """Shipped recipes."""

    @property
    def choices(self) -> tuple[str, ...]:
        from study.begin.recipes import recipes

        return tuple(recipes())

    @choices.setter
    def choices(self, given: object) -> None:
        """As of presets."""


@click.command()
@click.argument("file", type=FILE)
@click.option("--recipe", type=RecipeName([]), help="A shipped recipe.  [default: demo; with --data agft-folder]")
@click.option("--data", type=FOLDER, help="A folder of your pictures, a sub-folder a class: proposes roles for them.")
@click.option("--weights", "--pretrained", "pretrained", help="A file, folder, address or open_clip tag.  "
              "[default: openai]")  # fmt: skip
@click.option("--arch", help="open_clip's name of their architecture, or tiny-clip.  [default: ViT-B-32-quickgelu]")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs to write it for.  [default: this machine's]")
@click.option("--preset", type=PresetName([]), help="A paper's settings, spelled out.")
@click.option("--smoke", is_flag=True, help="As little as shows that it runs: random weights, drawn pictures, minutes.")
@json_option
def init(
    file: Path, recipe: str | None, data: Path | None, pretrained: str | None, arch: str | None, gpus: int | None,
    preset: str | None, smoke: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write a new study file that fits this machine, and say what it will cost.

    Without options it is the demo, on the bundled tiny CLIP: it runs anywhere, in minutes.
    """
    from study.begin.first import Wanted, write_first

    wanted = Wanted(recipe, preset, arch, pretrained, data, gpus, smoke)
    found = write_first(file, wanted, home())
    command = "compare" if found.study is None else "run"
    lines, cost = list(found.lines(file)), None
    if found.study is not None:
        from study.plan.study import cost_lines, plan_of

        try:
            planned = plan_of(found.study, home())
        except USER_ERRORS as error:  # data that is to come
            lines.append(f"  cost          not known yet: {error}")
        else:
            lines += cost_lines(planned)
            cost = {key: planned[key] for key in ("passes", "measured", "estimated")}
    lines.append(f"  next: agft {'validate' if found.study else 'compare'} {file}"
                 f"{'' if found.study else ' --plan'}, then agft {command} {file}")  # fmt: skip
    study = None if found.study is None else found.study.model_dump(mode="json")
    tell("\n".join(lines), as_json=as_json, file=str(file), source=found.source, study=study, cost=cost)


@click.command()
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print the resolved study as JSON.")
def validate(file: Path, as_json: bool) -> None:
    """Check a study file; every mistake is reported at once, nothing is started."""
    from study.artifacts.ready import unprepared, wrong_weights
    from study.plan.study import remarks
    from study.spec.files import load_study

    spec = load_study(file)
    if wrong := wrong_weights(spec.model):
        raise UserError(f"{file}: {wrong}")
    if as_json:
        print_json(spec.model_dump(mode="json"))
        return
    methods, goal = " or ".join(spec.blocks()), " and ".join(spec.goal.at({}).names)
    click.echo(f"{file}: valid. Study {spec.name!r}: {counted(spec.budget.trials, 'trials')} of {methods}, "
               f"{counted(len(spec.dimensions()), 'searched parameters')}, goal: max {goal}")  # fmt: skip
    for remark in [*remarks(spec), *(f"on this machine: {lack}" for lack in unprepared(spec))]:
        click.echo(f"  {remark}")


@click.command()
@click.argument("file", type=FILE, required=False)
@click.option("--suite", help="What measuring one model on it costs: a suite's name, or a FILE.yaml.")
@click.option("--clean", type=click.FloatRange(0, 1), default=0.6, show_default=True,
              help="Share of images expected right without attack.")  # fmt: skip
@click.option("--robust", type=click.FloatRange(0, 1), default=0.4, show_default=True,
              help="Share expected right under every attack: the others are soon settled.")  # fmt: skip
@click.option("--measure", metavar="MODEL", help="Hours: time MODEL, as of `agft evaluate`, on this machine.")
@click.option("--seconds-per-pass", type=POSITIVE, help="Hours: of one image, forward or backward.")
@click.option("--tflops", type=POSITIVE, help="Hours: TFLOP/s that a device is assumed to sustain in fp32.")
@click.option("--arch", help="Whose FLOPs.  [default: the study's]")
@json_option
def plan(
    file: Path | None, suite: str | None, clean: float, robust: float, measure: str | None,
    seconds_per_pass: float | None, tflops: float | None, arch: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a study would do, or what measuring a model on a suite costs, without starting anything.

    Costs are passes of images through the encoder. They become hours by one of --measure, --seconds-per-pass and
    --tflops; with FILE and --suite, the suite stands beside the study's training.
    """
    if file is None and suite is None:
        raise UserError("FILE or --suite: one is required, a study file or a suite to plan")
    if robust > clean:
        raise UserError(f"--robust: {robust:g} is more than --clean {clean:g}; an attack makes no image right")
    timing: dict[str, Any] = {"measure": measure, "seconds": seconds_per_pass, "tflops": tflops, "arch": arch}
    if suite is None and any(each is not None for each in timing.values()):
        raise UserError("--measure, --seconds-per-pass, --tflops and --arch tell a suite's hours: name a --suite")
    from study.artifacts.ready import check_ready
    from study.plan.cost import Assumed, cost_of, cost_text
    from study.plan.rate import chosen_rate
    from study.plan.study import plan_of, plan_text
    from study.spec.files import load_study
    from study.spec.suite import load_suite

    study, cost = None, None
    if file is not None:
        spec = load_study(file)
        check_ready(spec, room=False)
        study = plan_of(spec, home())
        timing["arch"] = arch or study["arch"]
    if suite is not None:
        chosen = load_suite(suite)
        cost = cost_of(chosen, Assumed(clean, robust), chosen_rate(**timing, home=home()))
    if as_json:
        print_json({"study": study, "suite": cost} if cost else study)
        return
    if study is not None:
        click.echo(plan_text(study))
    if cost is not None:
        click.echo(cost_text(cost, None if study is None else study["passes"]["training"]))


@click.command()
@click.argument("file", type=FILE)
@click.option("--plan", "plan_only", is_flag=True, help="Check the file and show what would run; start nothing.")
@click.option("--out", type=FOLDER, help="Folder of the report; default: in the AGFT home.")
@click.option("--latex", "as_latex", is_flag=True, help="Its tables for papers, on the screen.")
@json_option
def compare(file: Path, plan_only: bool, out: Path | None, as_latex: bool, as_json: bool) -> None:
    """Compare methods: an equal search each, fresh seeds, final sets; run again to go on."""
    from study.artifacts.ready import check_ready
    from study.comparison.file import load_comparison

    if as_latex and (as_json or plan_only):
        raise UserError("--latex: neither with --json nor with --plan")
    comparison = load_comparison(file)
    check_ready(comparison.shared(), room=not plan_only)
    if plan_only:
        studies = {label: study.model_dump(mode="json") for label, study in comparison.searches.items()}
        tell(
            comparison_plan(comparison), as_json=as_json, name=comparison.name, seeds=comparison.seeds, studies=studies
        )
        return
    from study.comparison.run import compare_here

    sys.exit(compare_here(comparison, home(), out, as_json=as_json, as_latex=as_latex))


def comparison_plan(comparison: Comparison) -> str:
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
