"""Searches over the measured settings by the whole service: Ray Tune, database, board, S3, MLflow; light trials.

    PYTHONPATH=.:tests python tests/bench/search_live.py [--trials 32] [--scale 0.02] [--out FILE]

A trial's epochs take their measured CPU seconds times `scale`. Each study's best trial is set beside 200 replays of the
same study (`search_replay.py`) with other seeds: it should be one of them. The replay's clock is not the live one, so
even the same seed asks the sampler at other moments.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.search_replay import replay, specification
from light import Plan, drive, light_cluster
from space_table import Table

from infra import stack
from infra.cluster import Cluster
from infra.services import Services
from study.results import best_trial
from study.store import StudyStore

RESULTS = Path(__file__).parent / "results"
METHODS = ("random", "TPE", "TPE + ASHA")
REPLAYS = 200
SLOTS = 4


def live(
    method: str, table: Table, clip: dict[str, Any], *, trials: int, scale: float, folder: Path, cluster: Cluster,
    services: Services,
) -> dict[str, Any]:  # fmt: skip
    """One study, and where its result lies among its replays."""
    name = "live-" + method.lower().replace(" + ", "-")
    changed = {"name": name, "budget": {"trials": trials}, "resources": {"max_concurrent": SLOTS}}
    database = f"sqlite:///{folder}/studies.db"
    began = time.perf_counter()
    outcome = drive(
        specification(method, 0, **changed), Plan(curve=table, scale=scale), database=database, cluster=cluster,
        services=services, baseline=clip,
    )  # fmt: skip
    rows = StudyStore(database, name).trials()
    goal = specification(method, 0).goal.resolve(clip)
    best = best_trial(rows, goal)
    others = [
        replay(
            specification(method, seed, **changed), table.nearest, goal, fallback=clip["robust_accuracy"],
            workers=SLOTS, start_up=0.0, horizon=float("inf"),
        )
        for seed in range(1, REPLAYS + 1)
    ]  # fmt: skip
    values = np.array([each.values[-1] for each in others])
    value = clip["robust_accuracy"] if best is None or best.last is None else best.last["best_robust_accuracy"]
    states = [row.state for row in rows]
    return {
        "state": outcome.state, "seconds": round(time.perf_counter() - began, 1), "best": value,
        "complete": states.count("complete"), "pruned": states.count("pruned"), "failed": states.count("failed"),
        "replays": {"median": float(np.median(values)), "low": float(values.min()), "high": float(values.max())},
        "replays_pruned": [min(r.pruned for r in others), max(r.pruned for r in others)],
        "below": float((values < value - 1e-9).mean()), "same": float((abs(values - value) < 1e-9).mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--scale", type=float, default=0.02, help="live seconds for a measured one")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    table = Table.read(RESULTS / "search-space.jsonl")
    clip = json.loads((RESULTS / "search-space-unmodified.json").read_text())
    record: dict[str, Any] = {"trials": wanted.trials, "scale": wanted.scale, "slots": SLOTS, "studies": {}}
    with tempfile.TemporaryDirectory(prefix="agft-live-", dir="/tmp") as name:
        folder = Path(name)
        try:
            services = stack.up(folder / "home")
            with light_cluster(services, folder / "home", cpus=SLOTS) as cluster:
                for method in METHODS:
                    record["studies"][method] = live(
                        method, table, clip, trials=wanted.trials, scale=wanted.scale, folder=folder, cluster=cluster,
                        services=services,
                    )  # fmt: skip
        finally:
            stack.down(folder / "home")
    print(json.dumps(record, indent=1))
    if wanted.out:
        wanted.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
