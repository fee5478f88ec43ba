"""Drive a study: build a fresh Tuner from the store, run it, and say honestly how it ended.

`Tuner.restore` is never used: its snapshot can be older than what finished, and reading it runs code. Unfinished
trials are continued from their own checkpoints, and Tune's own files are kept in memory and never read.
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

from infra import s3, storage
from infra.cluster.cluster import Cluster, max_concurrent
from infra.cluster.watch import left_when_lost, lost
from infra.errors import Away, ServiceError
from infra.failpoint import reach
from infra.provenance import provenance
from infra.tracking.runs import Tracker
from study.artifacts.checkpoints import scratch_prefix
from study.driver.driver import Driver
from study.driver.heartbeat import Heartbeat
from study.driver.messages import EVENTS, Notifier, message_of
from study.driver.seats import Work
from study.driver.trial import run_trial, train_order
from study.driver.trials import begin_search
from study.driver.tune import StudySearcher, fit
from study.errors import LeaseLost, StudyFailed
from study.report.live import LiveReport
from study.spec.config import StudyConfig
from study.spec.outside import outside_entries
from study.store.database import patient
from study.store.lease import LeaseHeld, owner_identity
from study.store.requests import pending
from study.store.rows import TrialRow
from study.store.store import DriverStore, StudyStore
from study.tracking import EXPERIMENT, end_study, project_study, replay_of, study_key
from trainers.schema.records import Measurement

log = logging.getLogger("agft")
MLFLOW_PATIENCE_SECONDS = 60.0
GOES_ON = "nothing is lost, the same command goes on"
LOST_PATIENCE_SECONDS = 5.0  # the same where the cluster is lost: whoever waits is to hear of it within a minute


@dataclass(frozen=True)
class Outcome:
    """How a drive ended. `state`: finished, paused or stopped; `message` says why."""

    state: str
    message: str
    trials: list[TrialRow]
    mlflow_page: str
    unsent: int  # records that MLflow has not, or refused


def run_study(
    spec: StudyConfig,
    *,
    database: str,
    cluster: Cluster,
    bucket: str,
    tracking_uri: str,
    say: Callable[[str], None],
    report: Path | None = None,
    trainable: Callable[[dict[str, Any]], None] | None = None,
    work: Work = train_order,
) -> Outcome:
    """Run a study to its end, or until somebody or something stops it; calling it again goes on where it was.

    The study is in the store already. `report`: folder where its report is drawn as it goes on. `work` trains one trial
    in the workers of a seat; `trainable` does it in Tune's own process instead, from the settings of a `TrialOrder`.
    Raises `UserError` (another driver, a trial that can never fit),
    `LeaseLost`, `StudyFailed`.
    """
    fitting = _fitting(spec, cluster)
    notifier = Notifier.from_environment(os.environ)
    store = DriverStore(database, spec.name)
    token = _acquire(store, say)
    reach("driver.acquired")
    tracker = Tracker(tracking_uri, EXPERIMENT, replay_of(store))
    live = LiveReport(store, tracker, report)
    heartbeat = Heartbeat(store, token)
    heartbeat.start()
    state, message = "paused", "the driver was interrupted"
    try:
        with left_when_lost(lambda reason: store.release(token, "paused", reason)):
            _prepare(store, token, bucket, say, fitting=fitting)
            reach("driver.prepared")
            driver = Driver(
                store=store, heartbeat=heartbeat, tracker=tracker, notifier=notifier, live=live, bucket=bucket,
                total=cluster.total, say=say, work=None if trainable else work,
            )  # fmt: skip
            with _signals(driver):
                driver.open()
                try:
                    _say_lag(driver, fitting, say)
                    # With `auto`, admission alone decides: it knows the nodes that join and leave meanwhile.
                    slots = sys.maxsize if spec.resources.max_concurrent == "auto" else fitting
                    _tune(driver, trainable or run_trial, slots=slots)
                    state, message = driver.final_state()
                finally:
                    driver.close()
        reach("study.finished")
        if state == "finished":
            _tidy(scratch_prefix(bucket, driver.study.slug))
    except LeaseLost:
        state = "lost"
        raise
    except Away as error:  # before the first trial: nothing has begun that could wait
        state, message = "paused", str(error)
    except BaseException as error:
        if gone := lost():
            message = gone
            raise StudyFailed(f"{gone}; {GOES_ON}") from error
        if isinstance(error, Exception):
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
    return Outcome(
        state=state,
        message=message,
        trials=store.trials(),
        mlflow_page=tracker.view_page(study_key(store.load())),
        unsent=unsent,
    )


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
    s3.probe(bucket)
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
        say(f"unmodified CLIP: clean {baseline.clean_accuracy:.1%}  robust {baseline.robust_accuracy:.1%}" + "".join(
            f"  {name.replace('_', ' ')} {getattr(baseline, name):.1%}" for name in study.spec.goal.calibrations
        ))  # fmt: skip


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
        fit(driver, searcher, trainable, name=f"tune-{driver.token}-{attempt}")


def _close_tracker(tracker: Tracker, store: StudyStore, state: str, say: Callable[[str], None]) -> int:
    """Close the parent run as the study ended, and wait a while for MLflow to have everything."""
    if state != "lost":
        study = store.load()
        if state == "failed":  # maybe before its run was there
            project_study(tracker, study, reopen=False)
        tracker.check(study_key(study))
        end_study(tracker, study)
    unsent = tracker.flush(LOST_PATIENCE_SECONDS if lost() else MLFLOW_PATIENCE_SECONDS)
    if unsent:
        why = tracker.why_waiting or "it does not answer"
        say(f"MLflow has not got {unsent} operations ({why}); the next `agft resume` sends them")
    tracker.close(1.0)
    if tracker.dropped:
        say(f"MLflow refused {len(tracker.dropped)} records, which the study has; the first: {tracker.dropped[0]}")
    return unsent + len(tracker.dropped)


@contextmanager
def _signals(driver: Driver) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a terminal that is closed pause the study; a second one leaves at once, still resumable, and
    so does the first where the cluster is lost. Whoever started it by `nohup` has it ignore that of the terminal."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if driver.interrupted and number == signal.SIGHUP and not lost():
            return  # the kernel says it, and then the shell
        if driver.interrupted or lost():
            raise KeyboardInterrupt
        driver.interrupted = True
        driver.say("pausing: running trials keep a state and leave (Ctrl-C again to leave now)")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {name: signal.signal(name, interrupt) for name in heard}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
