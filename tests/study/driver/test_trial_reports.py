"""What a real worker reports and what a real store keeps: every epoch's record once, whoever dies in between.

Ray is not there: `report` hands the driver's half of the work what the worker's half says, or loses it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray.train.torch

from study.driver.board import Board
from study.driver.trials import Trials
from study.store.store import StudyStore
from tests.support.hand import Hand
from tests.support.light import create_measured, light_study
from trainers.errors import Interrupted
from trainers.schema.records import Answer, At, Ending, Report, Weights
from trainers.wiring import Restored, Wiring
from trainers.worker import train_on_worker

EPOCHS = 5
NOWHERE = "http://127.0.0.1:9"  # MLflow is away


class Killed(Exception):
    """The worker's process is gone."""


@dataclass
class Line:
    """One trial, the driver that keeps it, and what was said between the two."""

    trials: Trials
    folder: Path
    board: Board = field(default_factory=Board)
    sent: list[Report] = field(default_factory=list)
    away_at: int = 0
    disk_full_at: int = 0

    def deliver(self, report: Report) -> None:
        """The driver's side of a report."""
        row = self.trials.report(0, report, device_seconds=1.0)
        assert row.last is not None
        asyncio.run(self.board.have(0, row.last.epoch))

    def keep(self, _group: int, path: Path, role: str, at: At, _stored: int) -> Weights:
        if at.epoch == self.away_at:
            raise Interrupted("S3 is full")
        shutil.copy(path, self.folder / f"{role}.safetensors")
        return Weights(uri=str(self.folder / f"{role}.safetensors"), sha256="0" * 64)

    def fetch(self, _group: int, _workdir: Path) -> Restored | None:
        row, path = self.trials.rows[0], self.folder / "latest.safetensors"
        known = row.latest or Weights(uri=str(path), sha256="0" * 64)
        return Restored(path, known, row.best) if path.is_file() else None

    def patiently(self, step: Callable[[], Any]) -> Any:
        if self.disk_full_at and len(self.sent) + 1 == self.disk_full_at:
            raise Interrupted("no space left on device")
        return step()

    def work(self, monkeypatch: pytest.MonkeyPatch, post: Callable[[Report], None], **changed: Any) -> Ending:
        """A worker's life: `post` is what happens to a report on its way. How the trial ended."""

        def report(told: Report) -> Answer:
            self.sent.append(Report.model_validate_json(told.model_dump_json()))
            post(self.sent[-1])
            return asyncio.run(self.board.answer(0, told.epoch, 0.0))

        monkeypatch.setattr(ray.train.torch, "get_device", lambda: "cpu")
        row = self.trials.rows[0]
        wiring = Wiring(
            arrive=lambda: None, claim=lambda: 1, fetch=self.fetch, keep=self.keep, report=report,
            provenance=lambda: {"hostname": "here"}, stored=row.last.epoch if row.last else 0,
            patiently=self.patiently,
        )  # fmt: skip
        settings = {"config": {**row.config, **changed}, "wiring": wiring, "threads": 1, "gpus": 0}
        return train_on_worker(settings)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    spec = light_study(
        "reported", scheduler={"name": "none"}, search={"method.scale_ratio": {"low": 0.2, "high": 1.4}},
        train={"epochs": EPOCHS, "batch_size": 16, "samples_per_epoch": 16},
        evaluate={"select": {"attack": {"eps": ["4/255"], "steps": 1}, "samples": 12}},
    )  # fmt: skip
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", spec.name)
    create_measured(store, spec)
    trials = Hand(store, owner="here|1|1.00|m.b.1").trials
    trials.begin(0)
    return Line(trials, tmp_path)


def stored_once(line: Line) -> bool:
    """The store has every epoch once, and the driver's memory is what the store has."""
    row = line.trials.store.trial(0)
    return row == line.trials.rows[0] and [r.epoch for r in row.epochs] == list(range(1, EPOCHS + 1))


def test_a_driver_that_keeps_up_gets_every_record_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    assert line.work(monkeypatch, line.deliver).outcome == "finished"
    assert [[record.epoch for record in report.records] for report in line.sent] == [[e] for e in range(1, EPOCHS + 1)]
    assert stored_once(line)
    assert line.trials.rows[0].attempts[-1].provenance["hostname"] == "here"  # type: ignore[index]
    assert line.trials.rows[0].kept.keys() == {"latest", "best"}


def test_a_driver_that_is_an_epoch_behind_gets_no_record_more_than_twice(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Report] = []

    def later(report: Report) -> None:
        waiting.append(report)
        if len(waiting) > 1:
            line.deliver(waiting.pop(0))

    line.work(monkeypatch, later)
    line.deliver(waiting.pop())
    assert sum(len(report.records) for report in line.sent) <= 2 * EPOCHS
    assert stored_once(line)


def test_a_report_that_is_lost_is_made_up_by_the_next(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.work(monkeypatch, lambda report: None if report.epoch in (2, 3) else line.deliver(report))
    assert [len(report.records) for report in line.sent] == [1, 1, 2, 3, 1]
    assert stored_once(line)


@pytest.mark.parametrize("heard", [False, True], ids=["before its report", "after it was stored"])
def test_a_worker_killed_between_checkpoint_and_answer_loses_and_doubles_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    def die(report: Report) -> None:
        if report.epoch < 3 or heard:
            line.deliver(report)
        if report.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        line.work(monkeypatch, die)
    assert len(line.trials.store.trial(0).epochs) == (3 if heard else 2)
    line.sent.clear()
    assert line.work(monkeypatch, line.deliver).outcome == "finished"
    first = [] if heard else [3]
    assert [[record.epoch for record in report.records] for report in line.sent] == [first, [4], [5]]
    assert stored_once(line)


@pytest.mark.parametrize("what", ["away_at", "disk_full_at"])
@pytest.mark.parametrize("epoch", [3, EPOCHS], ids=["in the middle", "at its last epoch"])
def test_a_worker_whose_files_can_be_kept_nowhere_is_interrupted_and_loses_that_epoch_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch, what: str, epoch: int
) -> None:
    setattr(line, what, epoch)
    ending = line.work(monkeypatch, line.deliver)
    assert (ending.outcome, ending.lost) == ("interrupted", False)
    assert ending.message in ("S3 is full", "no space left on device")
    assert [record.epoch for record in line.trials.rows[0].epochs] == list(range(1, epoch)), "it is not on record"
    setattr(line, what, 0)
    assert line.work(monkeypatch, line.deliver).outcome == "finished"
    assert stored_once(line)


def test_what_no_parameter_decides_is_told_apart(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ending = line.work(monkeypatch, line.deliver, model={"arch": "tiny-clip", "pretrained": str(tmp_path / "none.pt")})
    assert (ending.outcome, ending.failure_kind, ending.of_every_trial) == ("failed", "invalid", True)
    assert "none.pt" in (ending.message or "")
