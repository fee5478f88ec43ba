"""What a trial costs its driver in a long study: the first 50 trials against the last 50, part by part.

    PYTHONPATH=. python tests/bench/study_length.py [--trials 500] [--postgres] [--tune] [--out FILE]

Real searcher, scheduler, database, board, admission, S3 and MLflow; trials without training (`tests/support/light.py`,
six epochs, ASHA). Without `--tune` an inline loop takes Tune's place and trials run in the driver's process one after
the other, so that what is left is the driver's own work; with it, Ray Tune starts a process for every trial. CPU
seconds are the main thread's (MLflow: the tracker's thread's) and hold on a busy machine; wall seconds hold on a quiet
one.

An earlier version of the service is measured with this file and PYTHONPATH set to a checkout of it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from infra.stack import stack
from infra.tracking import runs as tracking
from study.driver import driver, trials
from study.driver import run as runner
from study.driver import tune as tuning
from study.search.projection import Projection
from study.search.proposals import Proposer
from study.store.store import StudyStore
from tests.support.light import Plan, create_measured, light, light_cluster, light_study, run_light
from tests.support.services.databases import postgres

WINDOW = 50
# part -> functions whose time it is; time in another part's function inside counts there
PARTS: dict[str, list[tuple[Any, str]]] = {
    "proposal": [(Proposer, "propose")],
    "who is next": [(trials.Trials, "upcoming")],
    "Optuna is told": [(Projection, "follow"), (Projection, "rebuild")],
    "store": [(StudyStore, name) for name in ("start_trial", "record", "decide", "finish_trial", "trials", "trial")],
    "verdict": [(trials.Trials, "judge")],
    "admission": [(driver.Driver, "admit")],
    "shown": [(trials, "project_trial"), (trials, "project_epochs"), (driver, "project_outcome"),
              (trials, "project_best")],
    "tidied": [(driver, "delete_superseded")],
    "driver": [(driver.Driver, "begin"), (driver.Driver, "result"), (driver.Driver, "end"), (driver.Driver, "step")],
    "trial": [],  # inline trials: their own work, S3 and the board's answer; with Tune this part is elsewhere
}  # fmt: skip


class Meter:
    """CPU and wall seconds by part and trial. Nested parts are not counted twice."""

    def __init__(self) -> None:
        self.spent: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
        self.trial = 0
        self.began: list[float] = []
        self.inner = threading.local()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time counted for `part` and the trial that was the newest then."""

        @functools.wraps(call)
        def measured(*args: Any, **kwargs: Any) -> Any:
            stack_before = getattr(self.inner, "spent", (0.0, 0.0))
            self.inner.spent = (0.0, 0.0)
            cpu, wall = time.thread_time(), time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took = time.thread_time() - cpu, time.perf_counter() - wall
                cell = self.spent[part][self.trial]
                cell[0] += took[0] - self.inner.spent[0]
                cell[1] += took[1] - self.inner.spent[1]
                self.inner.spent = (stack_before[0] + took[0], stack_before[1] + took[1])

        return measured

    def next_trial(self) -> None:
        """From now on time belongs to another trial."""
        self.trial = len(self.began)
        self.began.append(time.perf_counter())

    def window(self, numbers: range) -> dict[str, Any]:
        """Milliseconds a trial: `{part: [CPU, wall]}`, means over these trials."""
        return {
            part: [round(1000 * sum(cells[n][kind] for n in numbers) / len(numbers), 2) for kind in (0, 1)]
            for part, cells in sorted(self.spent.items())
        }


@contextlib.contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Every part's functions are timed."""
    kept = []

    def put(owner: Any, name: str, value: Any) -> None:
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for part, functions in PARTS.items():
        for owner, name in functions:
            if hasattr(owner, name):
                put(owner, name, meter.timed(part, getattr(owner, name)))
    begin = driver.Driver.begin

    def counted(self: Any, *given: Any) -> Any:
        meter.next_trial()
        return begin(self, *given)

    put(driver.Driver, "begin", counted)
    sent = tracking.Tracker._put

    def timed_put(self: Any, key: str, what: str, call: Callable[[], None], *rest: Any) -> None:
        sent(self, key, what, meter.timed("MLflow (its own thread)", call), *rest)

    put(tracking.Tracker, "_put", timed_put)
    try:
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


class InlineTuner:
    """In `tune.Tuner`'s place: asks the searcher and runs each trial here, to its end."""

    def __init__(self, meter: Meter, trainable: Any, tune_config: Any, run_config: Any) -> None:
        self.meter, self.config, self.callbacks = meter, tune_config, run_config.callbacks or []

    def fit(self) -> None:
        search = self.config.search_alg
        run = self.meter.timed("trial", run_light)
        for count in range(10**6):
            name = f"inline{count}"
            settings = search.suggest(name)
            while settings is None:
                time.sleep(0.01)
                settings = search.suggest(name)
            if settings == search.FINISHED:
                return
            run(Plan(), settings, functools.partial(self._report, SimpleNamespace(trial_id=name)))
            search.on_trial_complete(name, {}, False)

    def _report(self, trial: Any, result: dict[str, Any]) -> None:
        self.config.scheduler.on_trial_result(None, trial, result)
        for callback in self.callbacks:
            callback.on_step_end(0, [])


def measure(count: int, database: str, home: Path, *, through_tune: bool) -> dict[str, Any]:
    """One study of so many trials: cost of a trial early and late."""
    services = stack.up(home)
    spec = light_study("length", budget={"trials": count}, resources={"max_concurrent": 4})
    study = StudyStore(database, spec.name)
    create_measured(study, spec)
    meter = Meter()
    with light_cluster(services, home, cpus=4) as cluster, metered(meter):
        kept = tuning.tune
        if not through_tune:
            tuning.tune = SimpleNamespace(**{**vars(kept), "Tuner": functools.partial(InlineTuner, meter)})
        given = {"trainable": light()} if "trainable" in inspect.signature(runner.run_study).parameters else {}
        try:
            began, cpu = time.perf_counter(), time.process_time()
            outcome = runner.run_study(
                spec, database=database, cluster=cluster, bucket=services.bucket, tracking_uri=services.mlflow_uri,
                say=lambda line: None, **given,
            )  # fmt: skip
        finally:
            tuning.tune = kept
    first, last = range(WINDOW), range(len(meter.began) - WINDOW, len(meter.began))
    return {
        "trials": len(outcome.trials), "seconds": round(time.perf_counter() - began, 1), "unsent": outcome.unsent,
        "process_cpu_seconds": round(time.process_time() - cpu, 1),
        "wall_ms_a_trial": [
            round(1000 * (meter.began[w[-1]] - meter.began[w[0]]) / (WINDOW - 1), 1) for w in (first, last)
        ],
        "first": meter.window(first), "last": meter.window(last),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    with contextlib.ExitStack() as keep:
        folder = Path(keep.enter_context(tempfile.TemporaryDirectory(prefix="agft-length-", dir="/tmp")))
        database = keep.enter_context(postgres()) if wanted.postgres else f"sqlite:///{folder}/studies.db"
        keep.callback(stack.down, folder / "home")
        found = measure(wanted.trials, database, folder / "home", through_tune=wanted.tune)
    record = {
        "commit": commit.stdout.strip(), "database": "postgresql" if wanted.postgres else "sqlite",
        "through": "Ray Tune" if wanted.tune else "an inline loop", "cpus": os.cpu_count(),
        "load": os.getloadavg()[0], "python": platform.python_version(), "window": WINDOW, **found,
    }  # fmt: skip
    if wanted.out:
        wanted.out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(table(record)))


def table(record: dict[str, Any]) -> Iterator[str]:
    """First against last trials, CPU and wall milliseconds."""
    yield f"{record['trials']} trials, {record['database']}, through {record['through']}, {record['seconds']:.0f} s"
    yield f"{'part':26} {'first: CPU':>10} {'wall ms':>9} {'last: CPU':>10} {'wall ms':>9}  CPU ratio"
    rows = {part: (record["first"][part], record["last"][part]) for part in record["last"]}
    total = [[sum(row[w][k] for p, row in rows.items() if "thread" not in p) for k in (0, 1)] for w in (0, 1)]
    for part, (first, last) in {**rows, "all but MLflow's thread": total}.items():
        ratio = last[0] / first[0] if first[0] else float("nan")
        yield f"{part:26} {first[0]:10.2f} {first[1]:9.2f} {last[0]:10.2f} {last[1]:9.2f}  {ratio:9.2f}"


if __name__ == "__main__":
    main()
