"""The page of figures, from what was measured: `tests/bench/results/` -> `docs/performance.md`.

    PYTHONPATH=. python tests/bench/performance.py

Reads results anew and measures nothing: the script that does is named beside its figure; its newest record counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
Record = dict[str, Any]
BENCH = "PYTHONPATH=. python tests/bench/"


@dataclass(frozen=True)
class Figure:
    """Lines of one record: `rows(record)` gives what, value, limit. `record`: the start of its file's name."""

    record: str
    command: str
    rows: Callable[[Record], Iterator[tuple[str, str, str]]]


def trial(record: Record, when: str = "") -> Iterator[tuple[str, str, str]]:
    limits = {
        "start to first update": "0.3 s from the call of training to it, everything imported",
        "last report to end": "one upload and one row",
        "pause before the next": "none: the next one may start",
        "last report to the next first update": "the two above, and one proposal",
    }
    workers = record["workers"]
    who = f"{record['trials']} trials of {workers} worker{'s' * (workers > 1)}{when}"
    for phase, found in record["seconds"].items():
        if phase in limits:
            value = f"{found['median']:.2f} s ({found['low']:.2f} to {found['high']:.2f})"
            yield f"a trial, {phase} ({who})", value, limits[phase]


def length(record: Record) -> Iterator[tuple[str, str, str]]:
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[record["database"]]

    def mine(part: str) -> float:
        return float(sum(cpu for key, (cpu, _) in record[part].items() if not key.startswith("MLflow")))

    first, last, count = mine("first"), mine("last"), record["window"]
    yield (
        f"the driver's CPU time a trial, {record['trials']} trials, {name}",
        f"{first:.0f} ms in the first {count}, {last:.0f} ms in the last", "constant: what grows reads other trials",
    )  # fmt: skip
    yield (
        f"MLflow's thread, CPU time a trial, {name}",
        f"{record['first']['MLflow (its own thread)'][0]:.0f} ms in the first {count}",
        "beside the trials: it delays none",
    )


def proposal(record: Record) -> Iterator[tuple[str, str, str]]:
    for sampler, found in record["seconds"].items():
        shown = ", ".join(f"{seconds:.2g} s at {trials}" for trials, seconds in found.items())
        yield (
            f"one proposal by {sampler}, CPU time (4 numbers, 1 floor)",
            shown,
            "none: drawn parameters take a millisecond",
        )


def teacher(record: Record) -> Iterator[tuple[str, str, str]]:
    for step in record["steps"]:
        cached, live = (1000 * step["cpu"][f"{name}_median_seconds"] for name in ("cached", "live"))
        yield (
            f"a step with the teacher's cached embeddings, {step['case']}",
            f"{cached:,.0f} ms of CPU time against {live:,.0f} ms", "7 of 8 passes: 0.88",
        )  # fmt: skip


def skipping(record: Record) -> Iterator[tuple[str, str, str]]:
    computed = record["ratios"]["images_computed"]
    yield (
        "evaluation that skips what is broken already, suite tiny",
        f"{record['ratios']['cpu_seconds']:.1f} times less CPU time", f"{computed:.1f}: images computed",
    )  # fmt: skip


def prepare(record: Record) -> Iterator[tuple[str, str, str]]:
    yield (
        "preparing a dataset of pictures",
        f"{record['prepare']['images_per_second']:.0f} images/s on {record['prepare']['workers']} cores",
        f"decoding: {record['read']['decoding_images_per_second']:.0f} images/s a core",
    )
    yield (
        "reading prepared pictures", f"{record['read']['prepared_images_per_second']:,.0f} images/s, one thread",
        "the disk",
    )  # fmt: skip


def reading(record: Record) -> Iterator[tuple[str, str, str]]:
    rates, ratios = record["images_per_second"], record["readers_faster_than"]
    (plain, told), shown = (ratios[name]["median"] for name in ratios), f"{rates['readers']:,} images/s"
    yield (
        f"reading prepared pictures from a set larger than memory, {record['readers']} threads",
        f"{shown}, {plain:.1f} times a memory map ({told:.1f} times one that is told of random reads)", "the disk",
    )  # fmt: skip


def pgd(record: Record) -> Iterator[tuple[str, str, str]]:
    row = record["rows"][0]
    flops = 43 * 8.82e9 / row["cpu_seconds_per_image"] / 1e9
    yield (
        f"PGD-20, {record['arch'].split(',')[0]}, {row['device']}",
        f"{row['cpu_seconds_per_image']:.1f} s of CPU time an image", f"{flops:.0f} GFLOP/s in 43 passes",
    )  # fmt: skip


FIGURES = (
    Figure("trial-overhead-1-worker", f"{BENCH}trial_overhead.py", trial),
    Figure("trial-overhead-2-workers", f"{BENCH}trial_overhead.py --workers 2", trial),
    Figure("trial-overhead-before", f"{BENCH}trial_overhead.py --trials 8", partial(trial, when=", before seats")),
    Figure("study-length-500-sqlite", f"{BENCH}study_length.py --trials 500", length),
    Figure("study-length-500-postgresql", f"{BENCH}study_length.py --trials 500 --postgres", length),
    Figure("proposal-cost", f"{BENCH}proposal_cost.py", proposal),
    Figure("teacher-cache", f"{BENCH}teacher_cache.py --opening", teacher),
    Figure("skipping", f"{BENCH}skipping.py --samples 100", skipping),
    Figure("prepare-images", f"{BENCH}prepare_images.py --images 10000 --rounds 60", prepare),
    Figure("read-images", f"{BENCH}read_images.py --images 4096", reading),
    Figure("pgd-cost", f"{BENCH}pgd_cost.py --images 32 --rounds 1 --threads 1 --batch-sizes", pgd),
)


def newest(start: str) -> Path | None:
    """The record with the last date in its name."""
    found = sorted(RESULTS.glob(f"{start}*.json"), key=lambda path: (path.stem[-10:], path.stem))
    return found[-1] if found else None


def hardware(record: Record) -> str:
    """What the record says of the machine, and how busy that was."""
    machine = record.get("machine")
    own = machine if isinstance(machine, dict) else record
    load = next((own[key] for key in ("load_before", "load_average_at_start", "load") if key in own), None)
    busy = load[0] if isinstance(load, list) else load
    cores = own.get("cores") or own.get("cpus") or 2  # all were measured on two; some records say threads alone
    kind = own.get("processor", "an AMD EPYC")  # which the older records do not name
    return f"{cores} cores of {kind}" + ("" if busy is None else f", load {busy:.1f} before")


def commit(record: Record) -> str:
    """The code that was measured."""
    machine = record.get("machine")
    return str(record.get("commit") or (machine.get("commit") if isinstance(machine, dict) else None) or "not recorded")


def page() -> str:
    """All figures, each beside its limit; then where each comes from."""
    lines = [
        "# Performance", "",
        "What the service costs beside training, measured on a cloud machine without a GPU; no figure here is a GPU's.",
        "The limit is what the figure cannot beat, or what it is made of. The page is made from the records by", "",
        "```bash", f"{BENCH}performance.py", "```", "",
        "| what | measured | limit | from |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    sources = []
    for figure in FIGURES:
        file = newest(figure.record)
        if file is None:
            continue
        record = json.loads(file.read_text())
        sources.append((file, figure.command, record))
        lines += [f"| {' | '.join(row)} | [{len(sources)}](#records) |" for row in figure.rows(record)]
    lines += ["", "## Records", "", "| | record | command | hardware | commit |", "| ---: | --- | --- | --- | --- |"]
    for place, (file, command, record) in enumerate(sources, start=1):
        name = f"[{file.stem}](../tests/bench/results/{file.name})"
        lines.append(f"| {place} | {name} | `{command}` | {hardware(record)} | {commit(record)} |")
    lines += [
        "",
        "Early stopping against a trial's start-up, and what samplers find: [search quality](search-quality.md). What",
        "a GPU would need: [ImageNet](imagenet.md), estimates. On a GPU, `make gpu-check` writes its own table.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
