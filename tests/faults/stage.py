"""What a study under faults runs on: services behind gates, a database, and drivers as a terminal starts them."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from sqlalchemy.exc import SQLAlchemyError

from infra.services import Services
from infra.stack import stack
from study.errors import StudyFailed
from study.spec.config import StudyConfig
from study.spec.files import parse_study
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore
from tests.faults.driven import LEFT_OVER
from tests.support.light import create_measured, light_study
from tests.support.services.clock import Clock
from tests.support.services.gate import Gate, gate
from tests.support.services.hosts import Hosts
from tests.support.services.real_run import wait_until_gone
from tests.support.study_files import trained
from trainers.schema.records import Measurement

ROOT = Path(__file__).parents[2]
GONE_SECONDS = 40.0
OURS = ("AWS_", "MLFLOW_", "AGFT_", "RAY_")
DISK_MB = 6000  # for the checkpoints of many nested studies, deleted ones included, until SeaweedFS tidies up
LIGHT = {
    "lag": 3, "resources": {"max_concurrent": 2}, "sampler": {"name": "tpe", "startup_trials": 3},
    "scheduler": {"name": "asha", "grace_fraction": 0.3, "reduction_factor": 2, "min_trials": 2, "finish": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of trials. `seconds`: of a light epoch, 0 for real training; `gap`: between two strikes, as a rule."""

    name: str
    trials: int
    epochs: int
    seconds: float
    gap: tuple[float, float]

    def spec(self, name: str, trials: int | None = None) -> StudyConfig:
        """A study of so many of them, the same but for its name whenever it is asked for."""
        budget = {"trials": trials or self.trials}
        if self.seconds:
            train = {"epochs": self.epochs, "batch_size": 64, "samples_per_epoch": 64,
                     "optimizer": {"name": "adamw", "lr": 5e-4}}  # fmt: skip
            return light_study(name, **LIGHT, budget=budget, train=train)
        blocks = {
            "train": f"{{epochs: {self.epochs}, batch_size: 64, samples_per_epoch: 512}}", "lag": "2",
            "data": "{train: tiny-color-shapes, dev: [tiny-shapes, tiny-digits], confirm: [tiny-colors], "
            "final: [tiny-letters]}",
            "resources": "{workers: 1, cpus_per_worker: 1, max_concurrent: 2}",
            "budget": f"{{trials: {budget['trials']}}}",
        }  # fmt: skip
        return parse_study(trained(name=name, **blocks), source=name)


KINDS = {"light": Kind("light", 10, 6, 0.5, (1.0, 8.0)), "nested": Kind("nested", 3, 6, 0.0, (1.0, 30.0))}


@dataclass
class Stage:
    """One study and all around it. `moments` decides everything that is left to chance."""

    folder: Path  # of the suite's own
    home: Path  # AGFT_HOME of the drivers
    services: Services  # as they are, behind the gates
    s3: Gate
    mlflow: Gate
    kind: Kind
    moments: random.Random
    baseline: Measurement | None  # of the unmodified model, for studies that do not measure it
    spec: StudyConfig | None = None
    database: str = ""
    before: tuple[str, ...] = ()  # what drivers are started by
    variables: Mapping[str, str] = field(default_factory=dict)
    driver: subprocess.Popen[bytes] | None = None
    drivers: int = 0
    rows: list[TrialRow] = field(default_factory=list)  # as last read
    violations: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)  # by what, in a soak
    killed: dict[int, int] = field(default_factory=dict)  # trial whose workers were killed last -> its epochs then
    network: Hosts | None = None
    clock: Clock | None = None

    # --- the study -----------------------------------------------------------------------------------------------

    def create(self, name: str, trials: int | None = None) -> None:
        """A new study."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.database = self.database or f"sqlite:///{self.home}/studies.db"
        self.spec, self.rows, self.killed = self.kind.spec(name, trials), [], {}
        if self.baseline is None:
            self.store.create(self.spec)
        else:
            create_measured(self.store, self.spec, self.baseline)

    @property
    def store(self) -> StudyStore:
        assert self.spec is not None
        return StudyStore(self.database, self.spec.name)

    def read(self) -> list[TrialRow]:
        """The trials as stored; as last read while the database does not answer."""
        with suppress(SQLAlchemyError, StudyFailed):
            self.rows = self.store.trials()
        return self.rows

    @property
    def trials(self) -> int:
        """How many the study is to have."""
        assert self.spec is not None
        return self.spec.budget.trials

    def study(self) -> StudyRow:
        return self.store.load()

    def running(self) -> list[TrialRow]:
        """Trials that the driver of now has begun and not ended; none while the database does not answer."""
        with suppress(SQLAlchemyError, StudyFailed):
            study = self.study()
            if self.driver is not None and f"|{self.driver.pid}|" in (study.lease_owner or ""):
                return [row for row in self.read() if row.runs_under(study.token)]
        return []

    # --- its drivers ---------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen[bytes]:
        """The next driver, as `agft resume` starts one; its output goes to a file."""
        self.drivers += 1
        self.driver = self.command("resume", self.name, log=self.log)
        return self.driver

    def command(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """An `agft` command in this study's surroundings."""
        call = [*self.before, sys.executable, "-m", "tests.faults.driven", str(self.kind.seconds), *arguments]
        with open(log, "wb") as output:
            return subprocess.Popen(
                call, cwd=ROOT, env=self.environment(), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def name(self) -> str:
        assert self.spec is not None
        return self.spec.name

    @property
    def log(self) -> Path:
        """What the driver of now prints."""
        return self.folder / f"{self.name}-{self.drivers}.log"

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        seen = replace(self.services, s3_endpoint=self.s3.address, mlflow_uri=self.mlflow.address)
        return {
            **clean, **seen.environment(), "AGFT_HOME": str(self.home), "AGFT_STUDY_DB": self.database,
            "PYTHONUNBUFFERED": "1", **self.variables,
        }  # fmt: skip

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Live processes of this study's drivers, Ray's among them, whose command or name has `word` in it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("AGFT_HOME") == str(self.home)
                if ours and process.status() != psutil.STATUS_ZOMBIE and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def one(self, word: str) -> psutil.Process | None:
        """One of these processes, by chance."""
        found = sorted(self.processes(word), key=lambda process: process.pid)
        return self.moments.choice(found) if found else None

    def named(self, name: str) -> psutil.Process | None:
        """The process whose program is called so."""
        return next((process for process in self.processes(name) if process.name() == name), None)

    def look_behind(self) -> None:
        """What a driver that has left must not leave: processes, placement groups, a traceback."""
        assert self.driver is not None
        found, text = [], self.log.read_text(errors="replace")
        if left := wait_until_gone(self.processes, seconds=GONE_SECONDS):
            found.append(f"processes left: {sorted({process.name() for process in left})}")
            self.end()
        if "Traceback (most recent call last)" in text:
            found.append(f"a traceback: {self.last_words()}")
        groups = re.findall(rf"{LEFT_OVER} (\d+)", text)
        if groups and groups[-1] != "0":
            found.append(f"{groups[-1]} placement groups left")
        place = f"{self.name}, driver {self.drivers}, exit code {self.driver.returncode}"
        self.violations += [f"{place}: {each}" for each in found]

    def last_words(self) -> str:
        """The last line that the driver of now has printed."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[-200:] if lines else "it said nothing"

    def end(self) -> None:
        """SIGKILL to all processes of this study's drivers."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def service_home() -> Iterator[tuple[Path, Services]]:
    """(folder of ours, SeaweedFS and MLflow in it); where we are root, on a disk of their own, which can be full."""
    folder = Path(tempfile.mkdtemp(prefix="agft-f-", dir="/tmp"))  # short: socket names hold 107 characters
    try:
        with small_disk(folder / "disk") as disk:
            try:
                yield folder, stack.up(disk / "home", kept_up=True)
            finally:
                stack.down(disk / "home")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def small_disk(place: Path, megabytes: int = DISK_MB) -> Iterator[Path]:
    """A folder with a file system of its own, in a sparse file, where we are root; any folder elsewhere."""
    place.mkdir(parents=True)
    if os.geteuid() != 0:
        yield place
        return
    image = place.with_suffix(".img")
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        image.unlink()


def fill(file: Path) -> None:
    """To the last byte of its disk."""
    with open(file, "wb", buffering=0) as output, suppress(OSError):
        os.posix_fallocate(output.fileno(), 0, shutil.disk_usage(file.parent).free)
    with open(file, "ab", buffering=0) as output, suppress(OSError):
        while True:
            output.write(bytes(1 << 12))


@contextmanager
def stage(
    folder: Path, services: Services, kind: Kind, moments: random.Random, baseline: Measurement | None
) -> Iterator[Stage]:
    """Gates before the services, and a home for drivers; every process of it is ended."""
    home = Path(tempfile.mkdtemp(prefix="home-", dir=folder))
    with gate(services.s3_endpoint) as s3, gate(services.mlflow_uri, own_host=True) as mlflow:
        made = Stage(folder, home, services, s3, mlflow, kind, moments, baseline)
        try:
            yield made
        finally:
            made.end()
