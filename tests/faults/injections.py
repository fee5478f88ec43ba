"""Every fault that the suite injects: one row of `FAULTS` each."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from infra import storage
from infra.stack import postgres_programs, processes, stack
from study.artifacts.checkpoints import trial_prefix
from tests.faults.stage import Stage, fill, small_disk
from tests.support.services import hosts
from tests.support.services.clock import Clock
from tests.support.services.databases import postgres
from tests.support.services.gate import Gate, gate

HOME_MB = 60
PAUSE_SECONDS = 240
WHOLE = ("light", "nested")


class NothingThere(Exception):
    """What the fault strikes is not there now; it is tried again later."""


def training(stage: Stage) -> bool:
    """Whether a trial is under way."""
    return bool(stage.running())


def moved(stage: Stage) -> bool:
    """Whether every running trial has a new epoch since its workers were killed, or it was begun again. One that is
    killed again and again without any cannot be told from one that kills its own process, or takes all memory itself:
    it fails after three times, or the second."""
    running = stage.running()
    return bool(running) and all(
        len(row.epochs) > stage.killed.get(row.number, -1)
        and (len(row.attempts) < 2 or any(each.timestamp_ms > row.attempts[-1].started_ms for each in row.epochs))
        for row in running
    )


def ending(stage: Stage) -> bool:
    """Whether the last trial is about to end."""
    rows = stage.read()
    left = [row for row in rows if not row.finished]
    return len(rows) == stage.trials and len(left) == 1 and len(left[0].epochs) >= stage.kind.epochs - 2


@dataclass(frozen=True)
class Fault:
    """`strike` injects it when entered and mends it when left, `hold` seconds later; the next comes after `gap`
    seconds, or as the kind of trials has it (all drawn between two limits).

    `setting` is what the study runs in; `ready` says when the fault may come; `alone`: at most one a study; `trials`:
    how many the study has, where that is not as usual; `soak`: one study, struck until it ends.
    """

    what: str
    strike: Callable[[Stage], AbstractContextManager[Any]]
    hold: tuple[float, float] = (0.0, 0.0)
    kinds: tuple[str, ...] = WHOLE
    setting: Callable[[Stage], AbstractContextManager[Any]] = nullcontext
    ready: Callable[[Stage], bool] = training
    alone: bool = False
    gap: tuple[float, float] | None = None
    trials: int = 0
    soak: bool = False
    by_name: bool = False  # takes so long that it runs only when it is named
    timed: bool = True  # work lost can be measured: the records' clock is right


# --- processes -----------------------------------------------------------------------------------------------------


def _worker(stage: Stage) -> str:
    """What the process is called in which an epoch is trained."""
    return "RayTrainWorker" if stage.kind.name == "nested" else "ImplicitFunc"


@contextmanager
def _kill(find: Callable[[Stage], psutil.Process | None], stage: Stage) -> Iterator[None]:
    process = find(stage)
    if process is None:
        raise NothingThere
    _remember(stage)
    process.kill()
    yield


def _remember(stage: Stage) -> None:
    stage.killed = {row.number: len(row.epochs) for row in stage.running()}


@contextmanager
def _suspend(find: Callable[[Stage], list[psutil.Process]], stage: Stage) -> Iterator[None]:
    found = find(stage)
    if not found:
        raise NothingThere
    for process in found:
        process.suspend()
    try:
        yield
    finally:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _driver(stage: Stage) -> psutil.Process:
    assert stage.driver is not None
    return psutil.Process(stage.driver.pid)


def _service(name: str, stage: Stage) -> list[psutil.Process]:
    return processes.members(f"{stage.services.home}:{name}")


def _workers(stage: Stage) -> list[psutil.Process]:
    return stage.processes(_worker(stage))


@contextmanager
def _terminate(stage: Stage) -> Iterator[None]:
    """As a machine that is taken away: SIGTERM to the driver, and after ten seconds SIGKILL to all that is left."""
    driver = stage.driver
    assert driver is not None
    driver.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        driver.wait(10)
    for process in stage.processes():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    yield


@contextmanager
def _twice(stage: Stage) -> Iterator[None]:
    log = stage.folder / f"{stage.name}-second.log"
    code = stage.command("resume", stage.name, log=log).wait(240)
    if stage.driver is not None and stage.driver.poll() is None and (code, "is being driven" in log.read_text()) != (
        2, True,
    ):  # fmt: skip
        stage.violations.append(f"a second driver was not refused (exit code {code})")
    yield


@contextmanager
def _killed_service(name: str, stage: Stage) -> Iterator[None]:
    for process in _service(name, stage):
        process.kill()
    yield
    assert stage.services.home is not None
    stack.up(stage.services.home)


# --- services that are away or odd -----------------------------------------------------------------------------------


def _s3(stage: Stage) -> Gate:
    return stage.s3


def _mlflow(stage: Stage) -> Gate:
    return stage.mlflow


@contextmanager
def _shut(which: Callable[[Stage], Gate], stage: Stage) -> Iterator[None]:
    which(stage).shut()
    try:
        yield
    finally:
        which(stage).open()


@contextmanager
def _shut_at_start(which: Callable[[Stage], Gate], stage: Stage) -> Iterator[None]:
    """The driver is interrupted; when the next one starts, the service is away."""
    driver = stage.driver
    assert driver is not None
    driver.send_signal(signal.SIGINT)
    try:
        driver.wait(PAUSE_SECONDS)
    except subprocess.TimeoutExpired:
        stage.violations.append(f"a driver that was interrupted has not left after {PAUSE_SECONDS} s")
        stage.end()
    stage.look_behind()
    with _shut(which, stage):
        stage.start()
        yield


@contextmanager
def _habit(habit: str, stage: Stage) -> Iterator[None]:
    stage.s3.habit = habit
    try:
        yield
    finally:
        stage.s3.habit = ""


# --- databases and disks ---------------------------------------------------------------------------------------------


@contextmanager
def _on_postgres(stage: Stage) -> Iterator[None]:
    with postgres() as stage.database:
        yield


@contextmanager
def _restart_postgres(stage: Stage) -> Iterator[None]:
    engine = sa.create_engine(stage.database)
    with engine.connect() as connection:
        data = Path(connection.execute(sa.text("SHOW data_directory")).scalar_one())
    engine.dispose()
    options = shlex.split((data / "postmaster.opts").read_text())[1:]
    given = shlex.join(word for word in options if word not in ("-D", str(data)))
    control = [f"{postgres_programs.programs()}/pg_ctl", "-D", str(data), "-w", "-l", f"{data.parent}/log"]
    quiet = {"cwd": data.parent, "stdout": subprocess.DEVNULL, "check": True}
    account = postgres_programs.as_account(postgres_programs.account())
    subprocess.run([*control, "-m", "immediate", "stop"], **quiet, **account)
    yield
    subprocess.run([*control, "-o", given, "start"], **quiet, **account)


@contextmanager
def _lock_sqlite(stage: Stage) -> Iterator[None]:
    connection = sqlite3.connect(stage.home / "studies.db", isolation_level=None, timeout=60)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def _on_a_small_disk(stage: Stage) -> Iterator[None]:
    with small_disk(stage.folder / f"{stage.home.name}-disk", HOME_MB) as disk:
        stage.home = disk / "home"
        try:
            yield
        finally:
            stage.end()


@contextmanager
def _fill(place: Callable[[Stage], Path], stage: Stage) -> Iterator[None]:
    """To the last byte."""
    if not os.path.ismount(place(stage)):
        raise RuntimeError(f"{place(stage)} is no disk of its own: run the suite as root")
    file = place(stage) / "full"
    fill(file)
    try:
        yield
    finally:
        file.unlink()


def _home_disk(stage: Stage) -> Path:
    return stage.home.parent


def _service_disk(stage: Stage) -> Path:
    assert stage.services.home is not None
    return stage.services.home.parent


# --- memory, time, network -------------------------------------------------------------------------------------------

SPARE_BYTES = {"light": 2 << 30, "nested": 5 << 30}  # more than the study takes itself
HOG = "import sys, time; block = b'x' * int(sys.argv[1]); time.sleep(600)"


@contextmanager
def _watched_memory(stage: Stage) -> Iterator[None]:
    """Ray's monitor is on, and kills when so much more memory is in use on this machine than now."""
    memory = psutil.virtual_memory()
    used = memory.total - memory.available + SPARE_BYTES[stage.kind.name]
    stage.variables = {
        "RAY_memory_usage_threshold": f"{used / memory.total:.4f}", "RAY_memory_monitor_refresh_ms": "250",
    }  # fmt: skip
    yield


@contextmanager
def _use_memory(stage: Stage) -> Iterator[None]:
    """A process from elsewhere takes it, until Ray has killed one of ours."""
    before = {process.pid for process in _workers(stage)}
    if not before:
        raise NothingThere
    _remember(stage)
    memory = psutil.virtual_memory()
    wanted = float(stage.variables["RAY_memory_usage_threshold"]) * memory.total
    more = int(wanted - (memory.total - memory.available)) + (300 << 20)
    hog = subprocess.Popen([sys.executable, "-c", HOG, str(max(more, 1))])
    try:
        deadline = time.monotonic() + 20
        while before <= {process.pid for process in _workers(stage)} and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        hog.kill()
        hog.wait()
    yield


@contextmanager
def _wrong_clock(stage: Stage) -> Iterator[None]:
    stage.clock = Clock(stage.home)
    stage.variables = stage.clock.variables
    yield


@contextmanager
def _jump(stage: Stage) -> Iterator[None]:
    """Up to two hours ahead or back, for the driver and all of its Ray; and back again."""
    assert stage.clock is not None
    stage.clock.set(stage.moments.choice((-1, 1)) * stage.moments.randint(60, 7200))
    try:
        yield
    finally:
        stage.clock.set(0)


@contextmanager
def _on_a_host(stage: Stage) -> Iterator[None]:
    """Driver and Ray on a host of their own, the services on another, a cable between them."""
    if reason := hosts.why_not():
        raise RuntimeError(reason)
    with hosts.hosts(["study"]) as stage.network:
        bind = f"{stage.network.network}.1"
        s3, mlflow = stage.services.s3_endpoint, stage.services.mlflow_uri
        with gate(s3, bind=bind) as stage.s3, gate(mlflow, bind=bind, own_host=True) as stage.mlflow:
            stage.before = tuple(stage.network.command("study", []))
            try:
                yield
            finally:
                stage.end()


@contextmanager
def _cut(stage: Stage) -> Iterator[None]:
    assert stage.network is not None
    stage.network.cut("study")
    try:
        yield
    finally:
        stage.network.restore("study")


# --- checkpoints -----------------------------------------------------------------------------------------------------


@contextmanager
def _damage(how: str, stage: Stage) -> Iterator[None]:
    """The newest state of every running trial, whose workers are then killed: they go on from what is left."""
    workers = _workers(stage)
    for process in workers:
        process.suspend()
    newest = [uri for row in stage.running() if (uri := _newest_state(stage, row.number))]
    if not newest or not workers:
        for process in workers:
            process.resume()
        raise NothingThere
    for uri in newest:
        bucket, key = storage.split_uri(uri)
        client = storage.client()
        answer = client.get_object(Bucket=bucket, Key=key)
        body, metadata = answer["Body"].read(), answer["Metadata"]
        middle = len(body) // 2
        if how == "deleted":
            client.delete_object(Bucket=bucket, Key=key)
        elif how == "truncated":
            client.put_object(Bucket=bucket, Key=key, Body=body[:middle], Metadata=metadata)
        elif how == "altered":
            changed = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            client.put_object(Bucket=bucket, Key=key, Body=changed, Metadata=metadata)
        else:
            client.put_object(Bucket=bucket, Key=key, Body=b"something else", Metadata={})
    _remember(stage)
    for process in workers:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    yield


def _newest_state(stage: Stage, number: int) -> str:
    found = [
        Path(each.uri.removeprefix("s3://"))
        for each in storage.list_objects(trial_prefix(stage.services.bucket, stage.study().slug, number))
    ]
    states = [path for path in found if path.name.startswith("latest")]
    newest = max(states, key=lambda path: (path.parent, [int(epoch) for epoch in re.findall(r"-(\d+)-", path.name)]),
                 default=None)  # fmt: skip
    return f"s3://{newest}" if newest else ""


# --- all of them -----------------------------------------------------------------------------------------------------


@contextmanager
def _any(stage: Stage) -> Iterator[None]:
    """One of those that ask for nothing and come at any time."""
    fitting = [
        fault for fault in FAULTS.values()
        if stage.kind.name in fault.kinds and fault.setting is nullcontext and not (fault.alone or fault.by_name)
    ]  # fmt: skip
    fault = stage.moments.choice(fitting[1:])  # the first is none
    with fault.strike(stage):
        stage.struck.append(fault.what)
        yield


# --- the table -------------------------------------------------------------------------------------------------------

_SHORT, _LONG = (2.0, 10.0), (3.0, 30.0)
FAULTS: dict[str, Fault] = {
    "nothing": Fault("nothing: the same study, undisturbed", nullcontext),
    "worker": Fault("SIGKILL of a training worker", partial(_kill, lambda s: s.one("RayTrainWorker")),
                    kinds=("nested",), ready=moved),
    "trial": Fault("SIGKILL of a trial's process (a light trial trains in it)",
                   partial(_kill, lambda s: s.one("ImplicitFunc")), ready=moved),
    "controller": Fault("SIGKILL of Ray Train's controller", partial(_kill, lambda s: s.one("TrainController")),
                        kinds=("nested",), ready=moved),
    "driver": Fault("SIGKILL of the driver", partial(_kill, _driver)),
    "raylet": Fault("SIGKILL of the raylet", partial(_kill, lambda s: s.named("raylet"))),
    "head": Fault("SIGKILL of Ray's head (GCS)", partial(_kill, lambda s: s.named("gcs_server"))),
    "sigterm": Fault("SIGTERM, and after 10 s SIGKILL to all that is left", _terminate),
    "twice": Fault("the same study driven a second time", _twice),
    "stopped-worker": Fault("SIGSTOP of all training workers", partial(_suspend, _workers), _LONG),
    "mlflow-start": Fault("MLflow down when a driver starts", partial(_shut_at_start, _mlflow), _LONG),
    "mlflow-middle": Fault("MLflow down", partial(_shut, _mlflow), _LONG),
    "mlflow-end": Fault("MLflow down when the last trial ends", partial(_shut, _mlflow), _LONG, ready=ending,
                        gap=(0.0, 1.0), alone=True, trials=3),
    "mlflow-killed": Fault("SIGKILL of MLflow, which is started again", partial(_killed_service, "mlflow"), _SHORT),
    "mlflow-stopped": Fault("SIGSTOP of MLflow", partial(_suspend, partial(_service, "mlflow")), _LONG),
    "s3-down": Fault("S3 down", partial(_shut, _s3), _LONG),
    "s3-away-long": Fault("S3 down for 10 minutes", partial(_shut, _s3), (600.0, 600.0), gap=(1.0, 5.0),
                          by_name=True, alone=True),
    "s3-killed": Fault("SIGKILL of S3, which is started again", partial(_killed_service, "seaweedfs"), _SHORT),
    "s3-stopped": Fault("SIGSTOP of S3", partial(_suspend, partial(_service, "seaweedfs")), _LONG),
    "s3-slow": Fault("S3 slow: 3 s for every answer", partial(_habit, "slow"), _LONG),
    "s3-busy": Fault("S3 answers 503", partial(_habit, "busy"), _LONG),
    "s3-expired": Fault("S3 says that the keys have expired", partial(_habit, "expired"), _LONG),
    "s3-checksum": Fault("S3 refuses checksums", partial(_habit, "no-checksum"), _LONG),
    "s3-cut": Fault("S3 cuts uploads in the middle", partial(_habit, "cut"), _LONG),
    "s3-full": Fault("S3 says that its disk is full", partial(_habit, "full"), _LONG),
    "postgres": Fault("PostgreSQL restarted", _restart_postgres, _SHORT, setting=_on_postgres),
    "sqlite": Fault("SQLite locked by another process", _lock_sqlite, _LONG),
    "disk-home": Fault("disk full: the home, with the study database", partial(_fill, _home_disk), _SHORT,
                       setting=_on_a_small_disk),
    "disk-services": Fault("disk full: of S3 and MLflow", partial(_fill, _service_disk), _SHORT),
    "memory": Fault("Ray's memory monitor kills a worker", _use_memory, setting=_watched_memory, ready=moved),
    "clock": Fault("the clock of the driver's machine jumps and comes back", _jump, _SHORT, setting=_wrong_clock,
                   timed=False),
    "network": Fault("the network between driver and services cut", _cut, _LONG, setting=_on_a_host),
    **{
        f"checkpoint-{how}": Fault(f"newest state of the running trials {how}, and their workers killed",
                                   partial(_damage, how), ready=moved)
        for how in ("truncated", "altered", "replaced", "deleted")
    },
    "soak-light": Fault("a soak: any of these, every minute", _any, _LONG, kinds=("light",), gap=(60.0, 60.0),
                        trials=200, soak=True, by_name=True),
    "soak-nested": Fault("a soak: any of these, every 3 minutes", _any, _LONG, kinds=("nested",), gap=(180.0, 180.0),
                         trials=20, soak=True, by_name=True),
}  # fmt: skip
