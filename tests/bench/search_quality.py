"""How good the search is: the service's samplers and schedulers replayed over measured settings, many seeds each.

    PYTHONPATH=. python tests/bench/search_quality.py [--seeds 50] [--scene noisy] [--only GP] [--until 32]

Reads `results/search-space.jsonl` and `results/search-space-unmodified.json`; writes `search-quality.json` beside them
after every method, and puts tables and figures into docs/. Simulated time: `WORKERS` trials side by side, each with its
setting's measured CPU seconds after a start-up of `START_UP_SECONDS`, and what `lag: auto` makes of so many slots.
Compute is counted in full-length trials: what an average one costs, start-up included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.search_figures import draw
from tests.bench.search_replay import METHODS, Replay, replay, seen, specification
from tests.bench.search_statistics import summarise
from tests.support.space_table import Table
from trainers.schema.records import Measurement

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parents[1] / "docs"
WORKERS = 4
LAG = WORKERS + 1  # as `lag: auto`
BUDGETS = (8, 16, 24, 32, 48, 64)  # full-length trials
START_UP_SECONDS = 1.5


@dataclass(frozen=True)
class Scene:
    """One world to search in. `smooth`: linear between the settings; `images`: measured anew on so many."""

    title: str
    smooth: bool = True
    images: int | None = None
    start_up: float = START_UP_SECONDS


SCENES = {
    "table": Scene("nearest setting, as measured", smooth=False),
    "between": Scene("between the settings"),
    "noisy": Scene("every trial on 240 images of its own", images=240),
    "long": Scene("on 2400 images, trials without start-up", images=2400, start_up=0.0),
}


def unmodified() -> Measurement:
    """The CLIP that every trial starts from, measured as they were."""
    found = json.loads((RESULTS / "search-space-unmodified.json").read_text())
    return Measurement(
        clean_accuracy=found["clean_accuracy"], robust_accuracy=found["robust_accuracy"], datasets={}
    )  # fmt: skip


def one(
    scene: str, method: str, seed: int, lag: int | None = LAG, *, table: Table, clip: Measurement,
    budget: int = BUDGETS[-1], **more: Any,
) -> Replay:  # fmt: skip
    """One search of a scene, of so many full-length trials' compute. `lag` None: as `replay`; `more`: of the study."""
    found, spec = SCENES[scene], specification(method, seed, **more)
    return replay(
        spec, table.between if found.smooth else table.nearest, spec.goal.resolve(clip), images=found.images,
        fallback=clip.robust_accuracy, workers=WORKERS, start_up=found.start_up, lag=lag,
        horizon=budget * full_trial(table, found.start_up) / WORKERS,
    )  # fmt: skip


def full_trial(table: Table, start_up: float) -> float:
    """Seconds of the average full-length trial."""
    return start_up + float(np.mean([sum(seconds for *_, seconds in curve) for curve in table.curves.values()]))


def searches(
    scene: str, method: str, seeds: int, table: Table, clip: Measurement, processes: int, budget: int
) -> list[Replay]:
    """A method's searches of one scene, one a seed."""
    call = partial(one, scene, method, table=table, clip=clip, budget=budget)
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(call, range(seeds), chunksize=max(1, seeds // (4 * processes))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", action="append", choices=list(METHODS))
    parser.add_argument("--scene", action="append", choices=list(SCENES))
    parser.add_argument("--until", type=int, choices=BUDGETS, default=BUDGETS[-1])
    parser.add_argument("--space", type=Path, default=RESULTS / "search-space.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    wanted = parser.parse_args()
    table, clip, began = Table.read(wanted.space), unmodified(), time.time()
    budgets = [each for each in BUDGETS if each <= wanted.until]
    record: dict[str, Any] = {
        "settings": len(table.curves), "seeds": wanted.seeds, "workers": WORKERS, "lag": LAG,
        "min_trials": specification("random", 0).scheduler.min_trials, "budgets": budgets,
        "start_up_seconds": START_UP_SECONDS, "full_trial_seconds": full_trial(table, START_UP_SECONDS),
        "unmodified": clip.model_dump(include={"clean_accuracy", "robust_accuracy"}),
        "grid": grid_facts(table, clip), "scenes": {},
    }  # fmt: skip
    file = wanted.out / "search-quality.json"
    for scene in wanted.scene or ["between"]:
        unit, runs = full_trial(table, SCENES[scene].start_up) / WORKERS, {}
        for method in ["random", *(each for each in wanted.only or METHODS if each != "random")]:
            runs[method] = searches(scene, method, wanted.seeds, table, clip, wanted.processes, budgets[-1])
            found = summarise(runs, budgets=budgets, unit_seconds=unit, reference="random")
            record["scenes"][scene] = {"title": SCENES[scene].title, **found}
            file.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{scene}, {method}: {time.time() - began:.0f} s", file=sys.stderr, flush=True)
        print("\n".join(markdown(record["scenes"][scene])), "\n")
    draw(record, wanted.docs)
    page = wanted.docs / "search-quality.md"
    if page.exists():
        page.write_text(filled(page.read_text(), record))


def grid_facts(table: Table, clip: Measurement) -> dict[str, float]:
    """What there is to find: the feasible values of all settings, best first."""
    goal = specification("random", 0).goal.resolve(clip)
    truths = [seen(curve, goal).truth for curve in table.curves.values()]
    values = sorted((truth for truth in truths if truth is not None), reverse=True)
    return {"best": values[0], "tenth": values[9], "median": float(np.median(values)), "feasible": len(values)}


def markdown(scene: Mapping[str, Any]) -> Iterator[str]:
    """The table of a scene."""
    budgets = scene["budgets"]
    heads = ["search", *(f"after {b}" for b in budgets), "claims", "better / same / worse than random", "mean rank",
             "compute to random's end", "reach it", "complete / stopped"]  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    for name, found in scene["methods"].items():
        values = [f"{100 * each['mean']:.1f} ± {50 * (each['high'] - each['low']):.1f}" for each in found["budgets"]]
        wins, there = found["wins"], found["reach"]
        cells = [
            name, *values, f"{100 * found['claimed']:.1f}",
            "" if wins is None else f"{wins['better']} / {wins['same']} / {wins['worse']}",
            f"{found['rank']:.1f}", reach(there, budgets[-1]), f"{100 * there['reached']:.0f} %",
            f"{found['complete']:.0f} / {found['pruned']:.0f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def reach(found: Mapping[str, Any], most: int) -> str:
    """Median and interval of the compute to the target; beyond the last budget nothing is known."""
    median, low, high = (f"> {most}" if (v := found[k]) is None else f"{v:.0f}" for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})" if median != low or low != high else median


def filled(text: str, record: Mapping[str, Any]) -> str:
    """The page with the tables between its marks replaced."""
    for scene, found in record["scenes"].items():
        first, last = f"<!-- table: {scene} -->\n", "<!-- end -->"
        before, mark, rest = text.partition(first)
        if mark:
            _, _, after = rest.partition(last)
            text = before + mark + "\n".join(markdown(found)) + "\n\n" + last + after
    return text


if __name__ == "__main__":
    main()
