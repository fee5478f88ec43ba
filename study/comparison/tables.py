"""The tables of a comparison, from its record, as rows of text: for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from study.comparison.record import form_name
from study.spec.dimension import short, shown
from study.statistics import METRICS, set_accuracy

MARK = "(!)"  # beside a method that misses a floor
Record = Mapping[str, Any]
Rows = tuple[list[str], list[list[str]]]


def _spread(found: Record) -> str:
    deviation = "" if found["deviation"] is None else f" ± {100 * found['deviation']:.1f}"
    return f"{100 * found['mean']:.1f}{deviation}"


def _difference(found: Record | None) -> str:
    if found is None:
        return "-"
    return f"{points(found['mean'])}{interval_text(found['simultaneous'])}"


def interval_text(ends: Sequence[float] | None) -> str:
    return f" [{points(ends[0])}, {points(ends[1])}]" if ends else ""


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


def eps_text(values: Sequence[float]) -> str:
    return ", ".join(f"{eps * 255:g}/255" for eps in values)


def result_rows(record: Record, group: Record) -> Rows:
    """Means over the group's sets; who misses a floor with a seed, on these sets or on the dev sets, has a mark."""
    reference = record["reference"]
    rows = []
    for label, method in record["methods"].items():
        summary = group["methods"][label]
        found = group["differences"].get(label)
        apart = [_difference(found[name]) for name in METRICS] if found else ["", ""]
        other = form_name(method)
        name = f"{label}: {other}" if other else label
        mark = f" {MARK}" if any(group["below"][label].values()) or below_on_dev(method) else ""
        rows.append([name + mark, str(summary[METRICS[0]]["n"]), *(_spread(summary[each]) for each in METRICS), *apart])
    clip = group["unmodified"]
    rows.append(["unmodified CLIP", "", *(f"{100 * clip[name]:.1f}" for name in METRICS), "", ""])
    return ["method", "seeds", "clean", "robust", f"clean - {reference}", f"robust - {reference}"], rows


def below_on_dev(method: Record) -> list[int]:
    """The seeds whose checkpoint is below a floor on the dev sets, by which it was chosen."""
    return [run["seed"] for run in method["runs"] if run["final"] and not run["feasible"]]


def listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def set_rows(record: Record) -> Rows:
    """Of every final set, group by group."""
    clip = record["unmodified"]["final"]["datasets"]
    names = [each for group in record["groups"] for each in group["sets"]]
    rows = []
    for label, method in record["methods"].items():
        sets = method["summary"]["sets"]
        rows.append([label, *(_spread(sets[each][name]) for each in names for name in METRICS)])
    own = [f"{100 * set_accuracy(clip[each], name):.1f}" for each in names for name in METRICS]
    rows.append(["unmodified CLIP", *own])
    return ["method", *(f"{each} {name.split('_')[0]}" for each in names for name in METRICS)], rows


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
        values = ", ".join(f"{short(path)} {shown(path, value)}" for path, value in best["params"].items())
        rows.append([label, f"{complete}/{len(method['search']['trials'])}", str(best["trial"]), *accuracies, values])
    return ["method", "trials", "chosen", "clean", "robust", "its hyperparameters"], rows


def spaces(record: Record) -> list[str]:
    lines = []
    for label, method in record["methods"].items():
        space = ", ".join(f"{short(path)} {_range(entry)}" for path, entry in method["search"]["space"].items())
        lines.append(f"- {label}: {space or 'nothing'}")
    return lines


def _range(entry: Record) -> str:
    wrapper = next((key for key in entry if isinstance(entry[key], Mapping)), None)
    if wrapper:
        return f"{_range(entry[wrapper])} {wrapper.replace('_', ' ')}"
    if "choices" in entry:
        return f"of {listed(entry['choices'])}"
    return f"{entry['low']} to {entry['high']}{' (log)' if entry.get('log') else ''}"
