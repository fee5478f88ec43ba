"""Searches by the whole service: Ray Tune, database, board, S3, MLflow; over the measured settings, or trained anew.

    PYTHONPATH=. python tests/bench/search_live.py [--trials 32] [--scale 0.02] [--out FILE]
    PYTHONPATH=. python tests/bench/search_live.py --trained --trials 16 [--out FILE]

Without `--trained` trials are light and report the measured curves, epochs take their measured CPU seconds times
`scale`; with it every trial fine-tunes the tiny CLIP in Ray Train workers, as the settings of the grid were measured
(`measure_space.py`). Each study's best trial is set beside 200 replays of the same study (`search_replay.py`) with
other seeds: it should be one of them. Without `--trained` it is also set beside the replay with its own seed: what is
proposed and stopped follows from the file and the results, so that the two are the same though their clocks are not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from infra.cluster.cluster import Cluster
from infra.services import Services
from infra.stack import stack
from study.driver.run import Outcome, run_study
from study.results.ranking import best_trial
from study.spec.config import StudyConfig
from study.store.store import StudyStore
from tests.bench.search_quality import START_UP_SECONDS
from tests.bench.search_replay import METHODS, replay, specification
from tests.support.landscapes import COLOR_SHAPES, Table
from tests.support.light import Plan, drive, light_cluster
from trainers.schema.records import Measurement

REPLAYS = 200


def run(
    spec: StudyConfig, trained: bool, plan: Plan, *, database: str, cluster: Cluster, services: Services,
    clip: Measurement,
) -> Outcome:  # fmt: skip
    """One study to its end."""
    if not trained:
        return drive(spec, plan, database=database, cluster=cluster, services=services, baseline=clip)
    StudyStore(database, spec.name).create(spec)
    return run_study(
        spec, database=database, cluster=cluster, bucket=services.bucket, tracking_uri=services.mlflow_uri, say=print
    )


def live(
    method: str, table: Table, clip: Measurement, *, trained: bool, trials: int, slots: int, scale: float,
    folder: Path, cluster: Cluster, services: Services,
) -> dict[str, Any]:  # fmt: skip
    """One study, and where its result lies among its replays."""
    name = "live-" + method.lower().replace(" + ", "-")
    changed: dict[str, Any] = {
        "name": name, "budget": {"trials": trials},
        "resources": {**({"workers": 1, "cpus_per_worker": 1} if trained else {}), "max_concurrent": slots},
    }  # fmt: skip
    database = f"sqlite:///{folder}/studies.db"
    began = time.perf_counter()
    outcome = run(
        specification(method, 0, **changed), trained, Plan(curve=table, scale=scale), database=database,
        cluster=cluster, services=services, clip=clip,
    )  # fmt: skip
    store = StudyStore(database, name)
    rows, lag = store.trials(), store.load().lag
    goal = specification(method, 0).goal.resolve(clip)
    best = best_trial(rows, goal)
    own, *others = [
        replay(
            specification(method, seed, **changed), table.between if trained else table.nearest, goal, lag=lag,
            fallback=clip.robust_accuracy, workers=slots, start_up=START_UP_SECONDS if trained else 0.0,
            horizon=float("inf"),
        )
        for seed in range(REPLAYS + 1)
    ]  # fmt: skip
    values = np.array([each.values[-1] for each in others])
    value = clip.robust_accuracy if best is None or best.last is None else best.last.best_robust_accuracy
    states = [row.state for row in rows]
    return {
        "lag": lag,
        "as_replayed": None if trained else own.trials == tuple((r.state, len(r.epochs), r.params) for r in rows),
        "state": outcome.state, "seconds": round(time.perf_counter() - began, 1), "best": value,
        "best_clean": best.last.best_clean_accuracy if best and best.last else None,
        "device_seconds": round(sum(row.device_seconds for row in rows), 1),
        "complete": states.count("complete"), "pruned": states.count("pruned"), "failed": states.count("failed"),
        "replays": {"median": float(np.median(values)), "low": float(values.min()), "high": float(values.max())},
        "replays_pruned": [min(r.pruned for r in others), max(r.pruned for r in others)],
        "below": float((values < value - 1e-9).mean()), "same": float((abs(values - value) < 1e-9).mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--trained", action="store_true", help="train every trial")
    parser.add_argument("--slots", type=int, help="trials side by side; by default 4, trained 2")
    parser.add_argument("--scale", type=float, default=0.02, help="live seconds for a measured one")
    parser.add_argument("--only", action="append", choices=list(METHODS))
    parser.add_argument("--keep", type=Path, help="folder for database and services' home, to look at them afterwards")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    slots = wanted.slots or (2 if wanted.trained else 4)
    table = COLOR_SHAPES.table()
    clip = COLOR_SHAPES.clip()
    record: dict[str, Any] = {
        "trained": wanted.trained, "trials": wanted.trials, "scale": None if wanted.trained else wanted.scale,
        "slots": slots, "cpus": os.cpu_count(), "studies": {},
    }  # fmt: skip
    with contextlib.ExitStack() as stacked:
        folder = wanted.keep or Path(
            stacked.enter_context(tempfile.TemporaryDirectory(prefix="agft-live-", dir="/tmp"))
        )
        folder.mkdir(exist_ok=True)
        try:
            services = stack.up(folder / "home")
            with light_cluster(services, folder / "home", cpus=slots) as cluster:
                for method in wanted.only or list(METHODS):
                    record["studies"][method] = live(
                        method, table, clip, trained=wanted.trained, trials=wanted.trials, slots=slots,
                        scale=wanted.scale, folder=folder, cluster=cluster, services=services,
                    )  # fmt: skip
        finally:
            stack.down(folder / "home")
    print(json.dumps(record, indent=1))
    if wanted.out:
        wanted.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
