"""How good the search is: the service's samplers and schedulers replayed over measured settings, many seeds each.

    PYTHONPATH=. python tests/bench/search_quality.py [--landscape tiny-wide] [--seeds 100] [--only GP] [--scene noisy]

Reads a landscape's measured settings (`tests/support/landscapes.py`), keeps what every search found in
`results/search-quality-LANDSCAPE.json`, in place of the same method's before, and writes tables and figure of
docs/search-quality.md. Simulated time: `WORKERS` trials side by side, each with its setting's measured CPU seconds
after a start-up of `START_UP_SECONDS`, and what `lag: auto` makes of so many slots. Compute is counted in full-length
trials: what an average one costs, start-up included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.search_figures import draw
from tests.bench.search_replay import METHODS, Replay, replay, seen, specification
from tests.bench.search_statistics import summarise
from tests.support.landscapes import COLOR_SHAPES, LANDSCAPES, RESULTS, Landscape, Table

DOCS = Path(__file__).parents[2] / "docs"
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


def one(
    scene: str, method: str, seed: int, lag: int | None = LAG, *, table: Table, budget: int = BUDGETS[-1], **more: Any
) -> Replay:
    """One search of a scene, of so many full-length trials' compute. `lag` None: as `replay`; `more`: of the study."""
    found, clip = SCENES[scene], table.landscape.clip()
    spec = specification(method, seed, table.landscape, **more)
    assert spec.goal is not None
    return replay(
        spec, table.between if found.smooth else table.nearest, spec.goal.resolve(clip), images=found.images,
        fallback=clip.robust_accuracy, workers=WORKERS, start_up=found.start_up, lag=lag,
        horizon=budget * full_trial(table, found.start_up) / WORKERS,
    )  # fmt: skip


def full_trial(table: Table, start_up: float) -> float:
    """Seconds of the average full-length trial."""
    return start_up + float(np.mean([sum(seconds for *_, seconds in curve) for curve in table.curves.values()]))


def searches(scene: str, method: str, seeds: int, table: Table, processes: int) -> list[Replay]:
    """A method's searches of one scene, one a seed."""
    call = partial(one, scene, method, table=table)
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(call, range(seeds), chunksize=max(1, seeds // (4 * processes))))


def kept(found: Replay) -> dict[str, Any]:
    """What is remembered of a search: when its incumbent changed, and its ends."""
    steps = [(t, v) for n, (t, v) in enumerate(zip(found.times, found.values, strict=True))
             if n == 0 or v != found.values[n - 1]]  # fmt: skip
    return {"times": [round(t, 3) for t, _ in steps], "values": [v for _, v in steps], "claimed": found.claimed,
            "complete": found.complete, "pruned": found.pruned, "failed": found.failed}  # fmt: skip


def record_file(landscape: Landscape) -> Path:
    """Where its searches are kept."""
    return RESULTS / f"search-quality-{landscape.name}.json"


def summary(record: Mapping[str, Any], scene: str) -> dict[str, Any]:
    """See `summarise`, of a record's scene; methods in the order of `METHODS`."""
    found = record["scenes"][scene]
    runs = {name: [Replay(**each) for each in found["runs"][name]] for name in METHODS if name in found["runs"]}
    return summarise(runs, budgets=BUDGETS, unit_seconds=found["full_trial_seconds"] / WORKERS, reference="random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--landscape", default=COLOR_SHAPES.name, choices=LANDSCAPES)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", action="append", choices=list(METHODS))
    parser.add_argument("--scene", action="append", choices=list(SCENES))
    wanted = parser.parse_args()
    landscape, began = LANDSCAPES[wanted.landscape], time.time()
    table, file = landscape.table(), record_file(landscape)
    record = json.loads(file.read_text()) if file.exists() else {"scenes": {}}
    record |= {
        "settings": len(table.curves), "workers": WORKERS, "lag": LAG,
        "min_trials": specification("random", 0, landscape).scheduler.min_trials,
        "unmodified": landscape.clip().model_dump(include={"clean_accuracy", "robust_accuracy"}),
        "grid": grid_facts(table),
    }  # fmt: skip
    for name in wanted.scene or ["between"]:
        scene = record["scenes"].setdefault(name, {"runs": {}})
        start_up = SCENES[name].start_up
        scene |= {"start_up_seconds": start_up, "full_trial_seconds": full_trial(table, start_up)}
        for method in wanted.only or METHODS:
            scene["runs"][method] = list(map(kept, searches(name, method, wanted.seeds, table, wanted.processes)))
            file.write_text(json.dumps(record) + "\n")
            print(f"{name}, {method}: {time.time() - began:.0f} s", file=sys.stderr, flush=True)
    write(DOCS)


def write(folder: Path) -> None:
    """Tables and figure of the page, from all that is kept."""
    records = {name: json.loads(record_file(each).read_text()) for name, each in LANDSCAPES.items()
               if record_file(each).exists()}  # fmt: skip
    page = folder / "search-quality.md"
    text = page.read_text()
    for name, record in records.items():
        for scene in record["scenes"]:
            text = filled(text, f"{name} {scene}", markdown(summary(record, scene)))
    page.write_text(text)
    panels = {name: (record["grid"]["best"], summary(record, "between")) for name, record in records.items()}
    draw(panels, folder / "search-quality.png")


def grid_facts(table: Table) -> dict[str, float]:
    """What there is to find: the feasible values of all settings, best first."""
    goal = specification("random", 0, table.landscape).goal
    assert goal is not None
    goal = goal.resolve(table.landscape.clip())
    truths = [seen(curve, goal).truth for curve in table.curves.values()]
    values = sorted((truth for truth in truths if truth is not None), reverse=True)
    return {"best": values[0], "tenth": values[9], "median": float(np.median(values)), "feasible": len(values)}


def markdown(scene: Mapping[str, Any]) -> Iterator[str]:
    """The table of a scene."""
    budgets = scene["budgets"]
    heads = [
        "search", "seeds", *(f"after {b}" for b in budgets), "claims", "better / same / worse than random", "mean rank",
        "compute to random's end", "reach it", "complete / stopped",
    ]  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    for name, found in scene["methods"].items():
        values = [f"{100 * each['mean']:.1f} ± {50 * (each['high'] - each['low']):.1f}" for each in found["budgets"]]
        wins, there = found["wins"], found["reach"]
        cells = [
            name, str(found["seeds"]), *values, f"{100 * found['claimed']:.1f}",
            "" if wins is None else f"{wins['better']} / {wins['same']} / {wins['worse']}",
            f"{found['rank']:.1f}", reach(there, budgets[-1]), f"{100 * there['reached']:.0f} %",
            f"{found['complete']:.0f} / {found['pruned']:.0f}",
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def reach(found: Mapping[str, Any], most: int) -> str:
    """Median and interval of the compute to the target; beyond the last budget nothing is known."""
    median, low, high = (f"> {most}" if (v := found[k]) is None else f"{v:.0f}" for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})" if median != low or low != high else median


def filled(text: str, title: str, lines: Iterable[str]) -> str:
    """The page with the table between the marks of a title replaced; as it is where it has none."""
    before, mark, rest = text.partition(f"<!-- table: {title} -->\n")
    if not mark:
        return text
    return before + mark + "\n".join(lines) + "\n\n<!-- end -->" + rest.partition("<!-- end -->")[2]


if __name__ == "__main__":
    main()
