"""What the rule of knowledge costs: every method replayed with several lags, against the asynchronous rule.

    PYTHONPATH=. python tests/bench/search_lag.py [--seeds 100] [--scene between --scene long] [--only TPE] [--out FILE]

As `search_quality.py`: same settings, clock, slots and seeds. A search by the asynchronous rule knows all that has
ended when a trial starts, and compares with whoever has been at the rung; `min_trials` is the same in both. `before`
(methods with ASHA): the asynchronous rule with `min_trials` 1, in which the first trials at a rung always went on.
Writes `results/search-lag.json` after every method, leaves alone what it does not replay, and fills docs/'s tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.search_quality import DOCS, SCENES, WORKERS, full_trial, one
from tests.bench.search_replay import METHODS, Replay, specification
from tests.bench.search_statistics import interval
from tests.support.landscapes import COLOR_SHAPES, RESULTS, Table

LAGS = (3, 4, 5, 6, 8, 12)  # slots - 1 to 3 x slots
AT = (16, 32)  # full-length trials' worth of compute at which searches are compared; they end at the last
BEFORE: dict[str, Any] = {"scheduler": {"name": "asha", "min_trials": 1}}


def compared(runs: Sequence[Replay], others: Sequence[Replay] | None, unit_seconds: float) -> dict[str, Any]:
    """Means over seeds of what searches found, and of their loss against the others, seed by seed."""
    at = np.array([[run.at(budget * unit_seconds) for budget in AT] for run in runs])
    found: dict[str, Any] = {
        "value": at.mean(0).tolist(),
        "idle": float(np.mean([run.idle for run in runs])),
        "complete": float(np.mean([run.complete for run in runs])),
        "pruned": float(np.mean([run.pruned for run in runs])),
    }
    if others is not None:
        loss = np.array([[run.at(budget * unit_seconds) for budget in AT] for run in others]) - at
        low, high = interval(loss)
        found["loss"] = [
            {"mean": float(mean), "low": float(a), "high": float(b)}
            for mean, a, b in zip(loss.mean(0), low, high, strict=True)
        ]
    return found


def searches(scene: str, method: str, seeds: int, table: Table) -> dict[str, Any]:
    """One method in one scene: asynchronous, and with every lag."""
    unit = full_trial(table, SCENES[scene].start_up) / WORKERS
    call = partial(one, table=table, budget=AT[-1])
    free = [call(scene, method, seed, None) for seed in range(seeds)]
    found = {"asynchronous": compared(free, None, unit), "lags": {}}
    if METHODS[method]["scheduler"]["name"] == "asha":
        before = [call(scene, method, seed, None, **BEFORE) for seed in range(seeds)]
        found["before"] = compared(before, free, unit)
    for lag in LAGS:
        found["lags"][str(lag)] = compared([call(scene, method, seed, lag) for seed in range(seeds)], free, unit)
    return found


def rows(scene: Mapping[str, Any], budget: int | None) -> Iterator[str]:
    """The table of a scene: losses in points at a budget, or without one the idle share in %."""
    yield f"| search | {' | '.join(f'lag {lag}' for lag in LAGS)} |"
    yield "| --- |" + " ---: |" * len(LAGS)
    for method, found in scene["methods"].items():
        cases = [found["lags"][str(lag)] for lag in LAGS]
        yield f"| {' | '.join([method, *(_cell(case, budget) for case in cases)])} |"


def _cell(case: Mapping[str, Any], budget: int | None) -> str:
    if budget is None:
        return f"{100 * case['idle']:.1f}"
    mean, low, high = (100 * case["loss"][AT.index(budget)][key] for key in ("mean", "low", "high"))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def filled(text: str, record: Mapping[str, Any]) -> str:
    """The page with the tables between its marks replaced: `<!-- lag: SCENE BUDGET -->`, `<!-- lag: SCENE idle -->`."""
    for scene, found in record["scenes"].items():
        for budget in (*AT, None):
            before, mark, rest = text.partition(f"<!-- lag: {scene} {budget or 'idle'} -->\n")
            if mark:
                text = (
                    before
                    + mark
                    + "\n".join(rows(found, budget))
                    + "\n\n<!-- end -->"
                    + rest.partition("<!-- end -->")[2]
                )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--scene", action="append", choices=list(SCENES))
    parser.add_argument("--only", action="append", choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "search-lag.json")
    parser.add_argument("--docs", type=Path, default=DOCS)
    wanted = parser.parse_args()
    table = COLOR_SHAPES.table()
    record = json.loads(wanted.out.read_text()) if wanted.out.exists() else {"scenes": {}}
    record |= {
        "seeds": wanted.seeds, "settings": len(table.curves), "workers": WORKERS, "lags": LAGS, "budgets": AT,
        "min_trials": specification("TPE + ASHA", 0).scheduler.min_trials, "min_trials_before": 1,
    }  # fmt: skip
    for name in wanted.scene or ["between"]:
        scene = record["scenes"].setdefault(name, {"methods": {}})
        scene |= {"title": SCENES[name].title, "start_up_seconds": SCENES[name].start_up,
                  "full_trial_seconds": full_trial(table, SCENES[name].start_up)}  # fmt: skip
        for method in wanted.only or METHODS:
            began = time.perf_counter()
            scene["methods"][method] = searches(name, method, wanted.seeds, table)
            print(f"{name}, {method}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            wanted.out.write_text(json.dumps(record, indent=1) + "\n")
        for budget in (*AT, None):
            print(budget or "idle", *rows(scene, budget), sep="\n", flush=True)
    page = wanted.docs / "search-quality.md"
    page.write_text(filled(page.read_text(), record))


if __name__ == "__main__":
    main()
