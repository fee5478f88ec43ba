"""A comparison in words, tables and figures. It says what the data separate, and names no winner of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from study.comparison.figures import figures
from study.comparison.paper import latex_of
from study.comparison.record import form_lines
from study.comparison.tables import (
    MARK,
    attack_text,
    below_on_dev,
    cost_rows,
    eps_text,
    interval_text,
    listed,
    points,
    result_rows,
    search_rows,
    set_rows,
    spaces,
)  # fmt: skip
from study.figures.static import write
from study.markdown import as_code, escaped
from study.statistics import FEWEST_PAIRS, METRICS
from trainers.data import FOLDER_PREFIX

Record = Mapping[str, Any]


def write_comparison(record: Record, folder: Path) -> Path:
    """Write `comparison.md`, `.tex`, `.json` and the figures (PNG and PDF); returns the Markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = folder / "comparison.json"
    facts.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "comparison.tex").write_text(latex_of(record, facts), encoding="utf-8")
    for figure in figures(record):
        write(figure, folder)
    path = folder / "comparison.md"
    path.write_text(markdown(record), encoding="utf-8")
    return path


def comparison_table(record: Record) -> Group:
    """For a terminal: means over seeds, group by group, and who misses a floor."""
    parts: list[Table | str] = []
    for group in record["groups"]:
        title = f"{record['name']}: {group['title']}, mean ± standard deviation over seeds (%)"
        table = Table(title=title, title_justify="left")
        head, rows = result_rows(record, group)
        for place, name in enumerate(head):
            table.add_column(name, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        parts += [table, *floor_lines(record, group)]
    return Group(*parts)


def markdown(record: Record) -> str:
    """The whole report."""
    done, record = _what_was_done(record), _escaped(record)
    parts = [
        f"# Comparison {record['name']}",
        done,
        "\n".join(f"- {line}" for line in form_lines(record)),
        *(part for group in record["groups"] for part in _result(record, group)),
        "![clean against robust accuracy](comparison-accuracy.png)",
        "\n".join(f"- {line}" for line in _warnings(record)),
        _scope(record),
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


def _escaped(value: Any) -> Any:
    """The record with the paths of image folders, its only text that users write freely, as Markdown shows them."""
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(each) for each in value]
    return escaped(value) if isinstance(value, str) and FOLDER_PREFIX in value else value


def _result(record: Record, group: Record) -> Iterator[str]:
    """A table of means over a group of the final sets, and what it says."""
    alone = len(record["groups"]) == 1
    yield "## Result" if alone else f"## Result: {group['title']}"
    yield _table(*result_rows(record, group))
    sets = f"{len(group['sets'])} sets" if alone else f"{len(group['sets'])} of the sets: {listed(group['sets'])}"
    number = record["intervals"]["number"]
    together = (
        f"t intervals that hold all together, all {number} of this page, with 95 % (Bonferroni: each has "
        f"{100 * record['intervals']['each']:.2f} %; "
        if number > 1 else "95 % t intervals ("
    )  # fmt: skip
    yield (
        f"Percent on the final sets (unweighted mean over {sets}), mean ± standard deviation over seeds. The last two "
        f"columns are differences to {record['reference']} in points, seed by seed, with {together}from {FEWEST_PAIRS} "
        "seeds or more, if their differences are not all the same)."
    )
    yield "\n".join(f"- {line}" for line in floor_lines(record, group))
    yield "\n".join(f"- {line}" for line in _verdicts(record, group))


def floor_lines(record: Record, group: Record) -> list[str]:
    """For every method with a mark: which floor it misses, by how much, and with how many seeds, here and on dev."""
    lines = []
    for label, method in record["methods"].items():
        dev, measured = below_on_dev(method), sum(bool(run["final"]) for run in method["runs"])
        words = [_miss(record, group, label, name) for name, seeds in group["below"][label].items() if seeds]
        if words or dev:
            floors = ", ".join(f"{name.replace('_', ' ')} {100 * at:.1f}" for name, at in record["dev_floors"].items())
            seeds = f" (seeds {listed(dev)})" if dev else ""
            words.append(f"on the dev sets, where floors decide ({floors}), {len(dev)} of {measured} seeds miss{seeds}")
            lines.append(f"{MARK} {label}: {'; '.join(words)}.")
    return lines


def _miss(record: Record, group: Record, label: str, name: str) -> str:
    """One floor that a method misses with some seeds on a group of sets, perhaps not in mean."""
    found, floor, seeds = group["methods"][label][name], group["floors"][name], group["below"][label][name]
    what, rule = name.replace("_", " "), record["setting"]["goal"]["subject_to"][name]
    where = "below" if found["mean"] < floor else "in mean not below"
    return (
        f"{what} {100 * found['mean']:.1f} on the {group['title']} is {where} the goal's floor {rule}, there "
        f"{100 * floor:.1f} (clip: {100 * group['unmodified'][name]:.1f}), missed by {len(seeds)} of {found['n']} seeds"
    )


def _scope(record: Record) -> str:
    """What the intervals are of, and what not."""
    number = record["intervals"]["number"]
    corrected = (
        ", corrected for their number after Bonferroni (Dunn, JASA 56, 1961); `comparison.json` also has each for "
        "itself alone" if number > 1 else ""
    )  # fmt: skip
    floors = (
        " A floor of the goal decides on the dev sets which trial and which epoch is chosen; on other sets nothing "
        "sees to it." if record["setting"]["goal"]["subject_to"] else ""
    )  # fmt: skip
    return (
        "The intervals hold the spread of training seeds alone. The hyperparameters were searched once, and every run "
        "is measured on the same images, so another search or other data can move the methods by more than this. "
        f"Intervals shown: {number}{corrected}.{floors}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _what_was_done(record: Record) -> str:
    setting = record["setting"]
    data, train, goal, final = setting["data"], setting["train"], setting["goal"], setting["evaluate"]["final"]
    floors = "".join(f", {name.replace('_', ' ')} {floor}" for name, floor in goal["subject_to"].items())
    samples = "all images" if final["samples"] is None else f"{final['samples']} images a set"
    select = setting["evaluate"]["select"]["attack"]
    dev, last = (", ".join(map(escaped, data[role])) for role in ("dev", "final"))
    return (
        f"{len(record['methods'])} methods fine-tune `{setting['model']['arch']}` on {as_code(data['train'])}, "
        f"{train['epochs']} epochs of {train['samples_per_epoch'] or 'all'} images, batch {train['batch_size']}, "
        f"{train['optimizer']['name']}. Each searched its own hyperparameters with {setting['trials']} trials "
        f"({setting['sampler']['name']}) for the best {goal['metric'].replace('_', ' ')} on the dev sets "
        f"{dev} (eps {eps_text(select['eps'])}{floors}). Its best trial was run again with "
        f"the fresh seeds {listed(record['seeds'])}, the best epoch of each chosen by the same rule on the dev sets. "
        f"These checkpoints and the unmodified CLIP were measured on the final sets {last}, which "
        f"neither training nor search looked at: {samples}, protocol {final['protocol']}, {final['attack']['name']} "
        f"with {final['attack']['steps']} steps, eps {eps_text(final['attack']['eps'])}."
    )


def _verdicts(record: Record, group: Record) -> list[str]:
    """What the seeds say about every method against the reference, and what they do not say."""
    lines = []
    for label, found in group["differences"].items():
        words = []
        for name in METRICS:
            difference, what = found[name], name.split("_")[0]
            if difference is None:
                words.append(f"{what} accuracy cannot be compared: no seed in common")
            elif difference["alone"] is None:
                words.append(f"{what} accuracy: {_no_interval(difference)}")
            elif difference["separated"]:
                more = "higher" if difference["mean"] > 0 else "lower"
                words.append(f"{what} accuracy is {abs(100 * difference['mean']):.1f} points {more}")
            else:
                words.append(f"the seeds do not separate the {what} accuracies{_if_it_were_alone(difference)}")
        lines.append(f"{label} against {record['reference']}: {'; '.join(words)}.")
    return lines


def _if_it_were_alone(difference: Record) -> str:
    """Said only where the correction decides: whoever knows the interval without it will miss it."""
    low, high = difference["alone"]
    if low <= 0 <= high:
        return ""
    return (
        f" ({points(difference['mean'])}; only by itself, as if nothing else had been compared, the interval would "
        f"leave out 0:{interval_text(difference['alone'])})"
    )


def _no_interval(difference: Record) -> str:
    """Why there is no interval, and so no verdict."""
    found, n = f"{points(difference['mean'])} points", difference["n"]
    if n < FEWEST_PAIRS:
        mean = "in mean " if n > 1 else ""
        seeds = "seeds" if n > 1 else "seed"
        return f"no interval, {n} {seeds} in common being too few ({mean}{found})"
    return f"no interval, the difference being {found} with every one of {n} seeds, which shows no spread"


def _warnings(record: Record) -> list[str]:
    """Whatever makes the comparison less even than it looks."""
    lines = []
    for label, method in record["methods"].items():
        failed = [run["seed"] for run in method["runs"] if not run["final"]]
        if not method["chosen"]["feasible"]:
            lines.append(f"No trial of {label} reached the floors on the dev sets; the nearest one was taken.")
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
