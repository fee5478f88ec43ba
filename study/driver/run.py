"""Drive a study: build a fresh Tuner from the store, run it, and say honestly how it ended.

`Tuner.restore` is never used: its snapshot can be older than what finished, and reading it runs code. Unfinished
trials are continued from their own checkpoints, and Tune's directory is scratch.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from infra import storage
from infra.cluster.cluster import Cluster, max_concurrent
from infra.errors import ServiceError
from infra.failpoint import reach
from infra.provenance import provenance
from infra.tracking.runs import Tracker
from study.artifacts.checkpoints import scratch_prefix
from study.driver.driver import Driver
from study.driver.heartbeat import Heartbeat
from study.driver.messages import EVENTS, Notifier, message_of
from study.driver.searcher import StudySearcher
from study.driver.trial import run_trial
from study.driver.trials import begin_search
from study.errors import LeaseLost, StudyFailed
from study.report.live import LiveReport
from study.spec.config import StudyConfig
from study.spec.outside import outside_entries
from study.store.database import patient
from study.store.lease import LeaseHeld, owner_identity
from study.store.requests import pending
from study.store.rows import TrialRow
from study.store.store import StudyStore
from study.tracking import EXPERIMENT, end_study, project_study
from trainers.schema.records import Ending, Measurement

log = logging.getLogger("agft")
LOST_NODE_RETRIES = 2  # Tune starts a trial again when its driver process is lost with a node
MLFLOW_PATIENCE_SECONDS = 60.0
# A trial's own process waits for its workers and must not take a core from them; Ray wants it to ask for something.
DRIVER_RESOURCES = {"CPU": 0, "memory": 1 << 20}


@dataclass(frozen=True)
class Outcome:
    """How a drive ended. `state`: finished, paused or stopped; `message` says why."""

    state: str
    message: str
    trials: list[TrialRow]
    mlflow_page: str
    unsent: int


class _Scheduler(FIFOScheduler):
    """Tune's view of early stopping: it always continues; the verdict goes by way of the board."""

    def __init__(self, driver: Driver, searcher: StudySearcher) -> None:
        super().__init__()
        self.driver, self.searcher = driver, searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = self.searcher.numbers.get(trial.trial_id)
        if number is not None:
            self.driver.result(number, result)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        number = self.searcher.numbers.get(trial.trial_id)
        last = Path(trial.error_file).read_text().rpartition("Failure # ")[2] if trial.error_file else ""
        if number is not None and "ray::ImplicitFunc" in last:  # its code failed; of a lost process Ray says otherwise
            self.driver.endings.setdefault(number, Ending.failed("bug", last.strip()[-4000:]))

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Turn(tune.Callback):
    """Gives the driver a turn in Tune's loop."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.driver.step()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_study(
    spec: StudyConfig,
    *,
    database: str,
    cluster: Cluster,
    bucket: str,
    tracking_uri: str,
    say: Callable[[str], None],
    report: Path | None = None,
    trainable: Callable[[dict[str, Any]], None] = run_trial,
) -> Outcome:
    """Run a study to its end, or until somebody or something stops it; calling it again goes on where it was.

    The study is in the store already. `report`: folder where its report is drawn as it goes on. `trainable` runs one
    trial from the settings of a `TrialOrder`. Raises `UserError` (another driver, a trial that can never fit),
    `LeaseLost`, `StudyFailed`.
    """
    fitting = _fitting(spec, cluster)
    notifier = Notifier.from_environment(os.environ)
    store = StudyStore(database, spec.name)
    token = _acquire(store, say)
    reach("driver.acquired")
    tracker = Tracker(tracking_uri, EXPERIMENT)
    live = LiveReport(store, tracker, report)
    heartbeat = Heartbeat(store, token)
    heartbeat.start()
    state, message = "paused", "the driver was interrupted"
    try:
        _prepare(store, token, bucket, say, fitting=fitting)
        reach("driver.prepared")
        driver = Driver(
            store=store, heartbeat=heartbeat, tracker=tracker, notifier=notifier, live=live, bucket=bucket,
            total=cluster.total, say=say,
        )  # fmt: skip
        with _signals(driver):
            driver.open()
            try:
                _say_lag(driver, fitting, say)
                # With `auto`, admission alone decides: it knows the nodes that join and leave while the study runs.
                slots = sys.maxsize if spec.resources.max_concurrent == "auto" else fitting
                _tune(driver, trainable, slots=slots)
                state, message = driver.final_state()
            finally:
                driver.close()
        reach("study.finished")
        if state == "finished":
            _tidy(scratch_prefix(bucket, driver.study.slug))
    except LeaseLost:
        state = "lost"
        raise
    except Exception as error:
        state, message = "failed", " ".join(str(error).split())[:500] or type(error).__name__
        raise
    finally:
        heartbeat.stop()
        if state != "lost":
            store.release(token, state, message)
            reach("study.released")
            if (event := {"stopped": "finished"}.get(state, state)) in EVENTS:
                notifier.send(event, message_of(store.load(), state, store.trials()))
            live.close()
        unsent = _close_tracker(tracker, store, state, say)
        notifier.close()
    return Outcome(state=state, message=message, trials=store.trials(), mlflow_page=tracker.page(), unsent=unsent)


def _tidy(scratch: str) -> None:
    """Ray's own files of a finished study; what cannot be deleted now harms nobody."""
    try:
        storage.delete_prefix(f"{scratch}/")
    except (ServiceError, OSError) as error:
        log.warning("%s/ could not be deleted: %s", scratch, error)


def _fitting(spec: StudyConfig, cluster: Cluster) -> int:
    """Trials that fit side by side now; `UserError` with the numbers when not even one can ever fit."""
    wanted = spec.resources
    return max_concurrent(
        wanted.of_trial(), cluster.total, None if wanted.max_concurrent == "auto" else wanted.max_concurrent,
        per_worker=wanted.of_worker(), workers=wanted.workers, nodes=cluster.nodes,
    )  # fmt: skip


def _say_lag(driver: Driver, fitting: int, say: Callable[[str], None]) -> None:
    """What the rule of knowledge leaves idle of this cluster."""
    lag = driver.trials.lag
    if fitting > lag + 1:
        say(f"{fitting} trials fit at once, and lag {lag} lets at most {lag + 1} run; `lag` is set when a study begins")


def _acquire(store: StudyStore, say: Callable[[str], None]) -> int:
    """The lease; waits out the lease of a driver on another machine that may be dead."""
    told = False
    deadline = None
    while True:
        try:
            return store.acquire(owner_identity())
        except LeaseHeld as held:
            deadline = deadline or time.monotonic() + held.seconds + 5
            if held.local or time.monotonic() > deadline:
                raise
            if not told:
                say(f"{held}; waiting {held.seconds:.0f} s for its lease to end")
                told = True
            time.sleep(1.0)


def _prepare(store: StudyStore, token: int, bucket: str, say: Callable[[str], None], *, fitting: int) -> None:
    """Once in a study's life: provenance, lag, given trials, and the unmodified model's accuracies.

    Of the spec as it is now that the lease is ours: until then another terminal may replace it.
    """
    study = store.load()
    if study.provenance is None:
        entries = [origin.record() for origin in outside_entries(study.spec).values()]
        store.set_study(token, provenance={**provenance(), "entries": entries})
    begin_search(store, token, fitting)
    if study.baseline is None:
        from study.evaluation.executor import measure_unmodified  # imports torch, which a driver else never needs

        say("measuring the unmodified CLIP on the dev sets ...")
        baseline = Measurement.model_validate(measure_unmodified(study.spec, bucket, say))
        store.set_study(token, baseline=baseline)
        say(f"unmodified CLIP: clean {baseline.clean_accuracy:.1%}  robust {baseline.robust_accuracy:.1%}")


def _tune(driver: Driver, trainable: Callable[[dict[str, Any]], None], *, slots: int) -> None:
    """Run Tune until no trial is left. A budget that grew after Tune had heard "no more" takes another round."""
    searcher = StudySearcher(
        unfinished=driver.trials.unfinished(), upcoming=driver.upcoming, ended=driver.trials.ended, slots=slots,
        admit=driver.admit, begin=driver.begin, end=driver.end, closing=driver.is_closing,
    )  # fmt: skip
    if searcher.finished():
        driver.say("every trial of the budget has finished already")
    for attempt in itertools.count():
        driver.obey(patient(pending)(driver.store))
        if driver.is_closing() or searcher.finished():
            return
        _fit(driver, searcher, trainable, name=f"tune-{driver.token}-{attempt}")


def _keep_keys_out_of_ray() -> None:
    """Tune copies keys of S3 into every trial's runtime environment, which Ray's logs and pages show to everybody who
    sees them (Ray 2.60, `ray/tune/execution/class_cache.py`). Nodes have keys of their own; nothing needs the copy."""
    kept = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.intersection_update(kept)


def _fit(driver: Driver, searcher: StudySearcher, trainable: Callable[[dict[str, Any]], None], *, name: str) -> None:
    tuner = tune.Tuner(
        tune.with_resources(trainable, DRIVER_RESOURCES),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(driver, searcher),
            num_samples=-1,
            reuse_actors=False,  # with early stopping and nested trainers it hangs the sweep
            trial_dirname_creator=lambda trial: f"tune-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch_prefix(driver.bucket, driver.study.slug),
            verbose=0,
            callbacks=[_Turn(driver)],
            failure_config=tune.FailureConfig(max_failures=LOST_NODE_RETRIES),
        ),
    )
    _keep_keys_out_of_ray()
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"  # its snapshots are never read
    os.environ["TUNE_WARN_THRESHOLD_S"] = "30"  # a write to the database may take longer than its half a second
    # Tune looks for result files of its own, which are switched off, and warns that there are none.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    try:
        tuner.fit()
    except tune.TuneError as error:
        if isinstance(error.__cause__, LeaseLost | StudyFailed):
            raise error.__cause__ from None
        raise StudyFailed(f"Ray Tune gave up: {str(error).strip().splitlines()[-1]}") from error


def _close_tracker(tracker: Tracker, store: StudyStore, state: str, say: Callable[[str], None]) -> int:
    """Close the parent run as the study ended, and wait a while for MLflow to have everything."""
    if state != "lost":
        study = store.load()
        if state == "failed":  # maybe before its run was there
            project_study(tracker, study, reopen=False)
        end_study(tracker, study)
    unsent = tracker.flush(MLFLOW_PATIENCE_SECONDS)
    if unsent:
        say(f"MLflow does not answer: {unsent} operations are not shown there yet; the next `agft resume` sends them")
    tracker.close(1.0)
    return unsent


@contextmanager
def _signals(driver: Driver) -> Iterator[None]:
    """Ctrl-C and SIGTERM pause the study at the next reports; a second Ctrl-C leaves at once, still resumable."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if driver.interrupted:
            raise KeyboardInterrupt
        driver.interrupted = True
        driver.say("pausing: running trials keep a checkpoint at their next report (Ctrl-C again to leave now)")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.signal(name, interrupt) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
