"""A comparison in words, tables and figures. It says what the data separate, and names no winner of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from study.comparison.figures import figures
from study.comparison.record import form_lines, form_name
from study.figures.static import write
from study.spec.dimension import shown
from study.statistics import FEWEST_PAIRS, METRICS

# Tables of a comparison, as rows of text: for the terminal and for Markdown.

Record = Mapping[str, Any]
Rows = tuple[list[str], list[list[str]]]


def _spread(found: Record) -> str:
    deviation = "" if found["deviation"] is None else f" ± {100 * found['deviation']:.1f}"
    return f"{100 * found['mean']:.1f}{deviation}"


def _difference(found: Record | None) -> str:
    if found is None:
        return "-"
    interval = "" if found["low"] is None else f" [{_points(found['low'])}, {_points(found['high'])}]"
    return f"{_points(found['mean'])}{interval}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def eps_text(values: Sequence[float]) -> str:
    return ", ".join(f"{eps * 255:g}/255" for eps in values)


def result_rows(record: Record) -> Rows:
    reference = record["reference"]
    rows = []
    for label, method in record["methods"].items():
        summary = method["summary"]["final"]
        found = record["differences"].get(label)
        apart = [_difference(found[name]) for name in METRICS] if found else ["", ""]
        other = form_name(method)
        name = f"{label}: {other}" if other else label
        rows.append([name, str(summary[METRICS[0]]["n"]), *(_spread(summary[each]) for each in METRICS), *apart])
    clip = record["unmodified"]["final"]
    rows.append(["unmodified CLIP", "", *(f"{100 * clip[name]:.1f}" for name in METRICS), "", ""])
    return ["method", "seeds", "clean", "robust", f"clean - {reference}", f"robust - {reference}"], rows


def listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def set_rows(record: Record) -> Rows:
    clip = record["unmodified"]["final"]["datasets"]
    rows = []
    for label, method in record["methods"].items():
        sets = method["summary"]["sets"]
        rows.append([label, *(_spread(sets[each][name]) for each in clip for name in METRICS)])
    own = []
    for scores in clip.values():
        values = list(scores.values())
        own += [f"{100 * sum(score[name] for score in values) / len(values):.1f}" for name in METRICS]
    rows.append(["unmodified CLIP", *own])
    return ["method", *(f"{each} {name.split('_')[0]}" for each in clip for name in METRICS)], rows


def attack_text(attack: Record) -> str:
    """A training attack in a few words: two that differ read differently."""
    size, norm = attack["step_size"], attack["norm"]
    step = f"{size['of_eps']:g} eps" if isinstance(size, Mapping) else _radius(size, norm)
    extra = "".join(
        f", {name} {attack[name]:g}" for name, plain in (("restarts", 1), ("momentum", 0)) if attack[name] != plain
    )
    ball = "" if norm == "linf" else f"{norm} "
    return f"{attack['steps']} x {step}, {ball}eps {_radius(attack['eps'], norm)}{extra}"


def _radius(value: float, norm: str) -> str:
    """A length in the attack's norm: only one of the largest change of a pixel is counted in 255ths."""
    return eps_text([value]) if norm == "linf" else f"{value:g}"


def cost_rows(record: Record) -> Rows:
    rows = []
    for label, method in record["methods"].items():
        cost, runs = method["passes"], method["runs"]
        speeds = [run["images_per_second"] for run in runs if run["images_per_second"]]
        passes = f"{cost['teacher']:g} + {cost['attack']:g} + {cost['update']:g} = {cost['total']:g}"
        seconds = [run["device_seconds"] for run in runs]
        rows.append([
            label, attack_text(method["attack"]), passes, f"{sum(speeds) / len(speeds):.0f}" if speeds else "-",
            f"{sum(seconds) / len(seconds):.0f}", f"{method['search']['device_seconds'] / 60:.1f}",
        ])  # fmt: skip
    return ["method", "training attack", "passes", "images/s", "device-seconds a run", "search, device-minutes"], rows


def search_rows(record: Record) -> Rows:
    rows = []
    for label, method in record["methods"].items():
        best = method["chosen"]
        accuracies = [f"{100 * best[name]:.1f}" for name in METRICS]
        complete = sum(trial["state"] == "complete" for trial in method["search"]["trials"])
        values = ", ".join(f"{_short(path)} {shown(path, value)}" for path, value in best["params"].items())
        rows.append([label, f"{complete}/{len(method['search']['trials'])}", str(best["trial"]), *accuracies, values])
    return ["method", "trials", "chosen", "clean", "robust", "its hyperparameters"], rows


def _short(path: str) -> str:
    return path.removeprefix("method.").removeprefix("train.optimizer.")


def spaces(record: Record) -> list[str]:
    lines = []
    for label, method in record["methods"].items():
        space = ", ".join(f"{_short(path)} {_range(entry)}" for path, entry in method["search"]["space"].items())
        lines.append(f"- {label}: {space or 'nothing'}")
    return lines


def _range(entry: Record) -> str:
    wrapper = next((key for key in entry if isinstance(entry[key], Mapping)), None)
    if wrapper:
        return f"{_range(entry[wrapper])} {wrapper.replace('_', ' ')}"
    if "choices" in entry:
        return f"of {listed(entry['choices'])}"
    return f"{entry['low']} to {entry['high']}{' (log)' if entry.get('log') else ''}"


def write_comparison(record: Record, folder: Path) -> Path:
    """Write `comparison.md`, `comparison.json` and the figures (PNG and PDF); returns the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for figure in figures(record):
        write(figure, folder)
    path = folder / "comparison.md"
    path.write_text(markdown(record), encoding="utf-8")
    return path


def comparison_table(record: Record) -> Table:
    """For a terminal: means over seeds on the final sets."""
    table = Table(title=f"{record['name']}: final sets, mean ± standard deviation over seeds (%)", title_justify="left")
    head, rows = result_rows(record)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(record: Record) -> str:
    """The whole report."""
    reference = record["reference"]
    parts = [
        f"# Comparison {record['name']}",
        _what_was_done(record),
        "\n".join(f"- {line}" for line in form_lines(record)),
        "## Result",
        _table(*result_rows(record)),
        f"Percent on the final sets (unweighted mean over {len(record['setting']['data']['final'])} sets), mean "
        f"± standard deviation over seeds. The last two columns are differences to {reference} in points, seed by seed,"
        f" with 95 % t intervals (from {FEWEST_PAIRS} seeds or more, if their differences are not all the same).",
        "![clean against robust accuracy](comparison-accuracy.png)",
        "\n".join(f"- {line}" for line in [*_verdicts(record), *_warnings(record)]),
        "The intervals hold the spread of training seeds alone. The hyperparameters were searched once, and every run "
        "is measured on the same images, so another search or other data can move the methods by more than this. "
        f"Intervals shown: {_intervals(record)}, not corrected for their number.",
        "## Every final set",
        _table(*set_rows(record)),
        "![accuracy on every final set](comparison-sets.png)",
        "## Cost",
        _table(*cost_rows(record)),
        "Passes: forwards and backwards of the image encoder for each image and update, teacher + attack + update. A "
        "teacher that sees only clean images is computed once and counts 0. Images a second and device-seconds are "
        "those of the runs with fresh seeds, start-up and measuring on the dev sets included in the seconds, "
        f"{_devices(record)}. Search and seeds together: {_total_seconds(record) / 3600:.2f} device-hours.",
        "## Search",
        _table(*search_rows(record)),
        f"Accuracies (%) of the chosen trial's best epoch on the dev sets {listed(record['setting']['data']['dev'])}. "
        "Every method searched:",
        "\n".join(spaces(record)),
        "![search curves](comparison-search.png)",
        "## Where it comes from",
        _origin(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _what_was_done(record: Record) -> str:
    setting = record["setting"]
    data, train, goal, final = setting["data"], setting["train"], setting["goal"], setting["evaluate"]["final"]
    floors = "".join(f", {name.replace('_', ' ')} {floor}" for name, floor in goal["subject_to"].items())
    samples = "all images" if final["samples"] is None else f"{final['samples']} images a set"
    select = setting["evaluate"]["select"]["attack"]
    return (
        f"{len(record['methods'])} methods fine-tune `{setting['model']['arch']}` on `{data['train']}`, "
        f"{train['epochs']} epochs of {train['samples_per_epoch'] or 'all'} images, batch {train['batch_size']}, "
        f"{train['optimizer']['name']}. Each searched its own hyperparameters with {setting['trials']} trials "
        f"({setting['sampler']['name']}) for the best {goal['metric'].replace('_', ' ')} on the dev sets "
        f"{', '.join(data['dev'])} (eps {eps_text(select['eps'])}{floors}). Its best trial was run again with "
        f"the fresh seeds {listed(record['seeds'])}, the best epoch of each chosen by the same rule on the dev sets. "
        f"These checkpoints and the unmodified CLIP were measured on the final sets {', '.join(data['final'])}, which "
        f"neither training nor search looked at: {samples}, protocol {final['protocol']}, {final['attack']['name']} "
        f"with {final['attack']['steps']} steps, eps {eps_text(final['attack']['eps'])}."
    )


def _verdicts(record: Record) -> list[str]:
    """What the seeds say about every method against the reference, and what they do not say."""
    lines = []
    for label, found in record["differences"].items():
        words = []
        for name in METRICS:
            difference, what = found[name], name.split("_")[0]
            if difference is None:
                words.append(f"{what} accuracy cannot be compared: no seed in common")
            elif difference["low"] is None:
                words.append(f"{what} accuracy: {_no_interval(difference)}")
            elif difference["separated"]:
                more = "higher" if difference["mean"] > 0 else "lower"
                words.append(f"{what} accuracy is {abs(100 * difference['mean']):.1f} points {more}")
            else:
                words.append(f"the seeds do not separate the {what} accuracies")
        lines.append(f"{label} against {record['reference']}: {'; '.join(words)}.")
    return lines


def _no_interval(difference: Record) -> str:
    """Why there is no interval, and so no verdict."""
    points, n = f"{100 * difference['mean']:+.1f} points", difference["n"]
    if n < FEWEST_PAIRS:
        mean = "in mean " if n > 1 else ""
        seeds = "seeds" if n > 1 else "seed"
        return f"no interval, {n} {seeds} in common being too few ({mean}{points})"
    return f"no interval, the difference being {points} with every one of {n} seeds, which shows no spread"


def _intervals(record: Record) -> int:
    """How many differences have an interval."""
    every = [found for by_metric in record["differences"].values() for found in by_metric.values()]
    return sum(found is not None and found["low"] is not None for found in every)


def _warnings(record: Record) -> list[str]:
    """Whatever makes the comparison less even than it looks."""
    lines = []
    for label, method in record["methods"].items():
        failed = [run["seed"] for run in method["runs"] if not run["final"]]
        below = [run["seed"] for run in method["runs"] if run["final"] and not run["feasible"]]
        if not method["chosen"]["feasible"]:
            lines.append(f"No trial of {label} reached the floors on the dev sets; the nearest one was taken.")
        if below:
            count = f"{len(below)} of {len(method['runs'])}"
            lines.append(f"{label}: {count} runs are below a floor on the dev sets (seeds {listed(below)}).")
        if failed:
            lines.append(f"{label}: seeds {listed(failed)} failed and are missing.")
        lost = sum(trial["state"] == "failed" for trial in method["search"]["trials"])
        if lost:
            lines.append(f"{label}: {lost} of {len(method['search']['trials'])} search trials failed.")
    if len({attack_text(method["attack"]) for method in record["methods"].values()}) > 1:
        lines.append("The methods did not train against the same attack; see Cost.")
    if len(_revisions(record)) > 1:
        lines.append(f"The runs were made by different code revisions: {', '.join(_revisions(record))}.")
    return lines


def _devices(record: Record) -> str:
    resources, made = record["setting"]["resources"], record["provenance"]
    per_worker = resources["gpus_per_worker"] or resources["cpus_per_worker"]
    kind = "GPU" if resources["gpus_per_worker"] else "CPU core"
    trial = f"{resources['workers']} x {per_worker:g} {kind} a trial"
    return f"{trial}, on a machine with {made['cpus']} CPU cores"


def _total_seconds(record: Record) -> float:
    methods = record["methods"].values()
    return float(sum(m["search"]["device_seconds"] + sum(run["device_seconds"] for run in m["runs"]) for m in methods))


def _revisions(record: Record) -> list[str]:
    codes = [code for method in record["methods"].values() for code in method["code"] if code]
    return sorted({f"{(code['revision'] or 'unknown')[:12]}{'+' if code['dirty'] else ''}" for code in codes})


def _origin(record: Record) -> str:
    made, packages = record["provenance"], record["provenance"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "ray", "optuna") if name in packages)
    begun = datetime.fromtimestamp(record["created_ms"] / 1000, UTC)
    return (
        f"`agft compare` on {begun:%Y-%m-%d}, code {', '.join(_revisions(record)) or 'unknown'} (+: with uncommitted "
        f"changes), {versions}, Python {made['python']}; seed of every search {record['setting']['seed']}. Counts of "
        "right answers for every method, seed and set, every trial and every checkpoint's SHA-256 are in "
        "[comparison.json](comparison.json)."
    )
