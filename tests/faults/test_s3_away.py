"""S3 goes away under a running study: nobody has failed, and what is found is the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra import storage
from study.artifacts.checkpoints import trial_prefix
from study.errors import StudyFailed
from study.store.store import StudyStore
from tests.support.light import Plan, drive, light_cluster, light_study
from tests.support.services.gate import Gate, gate

if TYPE_CHECKING:
    from infra.cluster.cluster import Cluster
    from infra.services import Services
    from study.driver.run import Outcome

TRIALS = 3
STUDY: dict[str, Any] = {
    "budget": {"trials": TRIALS}, "scheduler": {"name": "none"}, "lag": 1,
    "train": {"epochs": 3, "batch_size": 64, "samples_per_epoch": 64, "optimizer": {"name": "adamw", "lr": 5e-4}},
}  # fmt: skip


@dataclass
class Bench:
    """A cluster whose only way to S3 is an endpoint of ours, and what drivers said on it."""

    cluster: Cluster
    services: Services
    endpoint: Gate
    folder: Path
    said: list[str] = field(default_factory=list)

    def drive(self, name: str, plan: Plan | None = None, say: Callable[[str], None] = print, **changed: Any) -> Outcome:
        def heard(line: str) -> None:
            self.said.append(line)
            say(line)

        return drive(
            light_study(name, **{**STUDY, **changed}), plan or Plan(scale=0.3), database=self.database, say=heard,
            cluster=self.cluster, services=self.services,
        )  # fmt: skip

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder}/studies.db"

    def table(self, name: str) -> list[Any]:
        """Of every trial what does not depend on the clock."""
        rows = StudyStore(self.database, name).trials()
        return [(row.number, row.state, row.params, [each.repeatable() for each in row.epochs]) for row in rows]

    def send_away(self, habit: str, seconds: float | None = None) -> Callable[[str], None]:
        """From the second epoch's line on; `seconds`: until it comes back."""
        done: list[str] = []

        def say(line: str) -> None:
            if "epoch 2/" in line and not done:
                done.append(line)
                self.endpoint.habit = habit
                if seconds is not None:
                    threading.Timer(seconds, setattr, (self.endpoint, "habit", "")).start()

        return say


@pytest.fixture(scope="module")
def cluster(stack: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("away")
    with gate(stack.s3_endpoint) as endpoint:
        services = replace(stack, s3_endpoint=endpoint.address)
        with light_cluster(services, folder / "home") as found:
            yield Bench(found, services, endpoint, folder)


@pytest.fixture
def bench(cluster: Bench) -> Iterator[Bench]:
    cluster.said.clear()
    yield cluster
    cluster.endpoint.habit = ""


def check_unharmed(bench: Bench, name: str) -> None:
    """Every trial is complete, and found what it finds without an outage."""
    rows = StudyStore(bench.database, name).trials()
    assert [row.state for row in rows] == ["complete"] * TRIALS
    bench.drive("calm")
    assert bench.table(name) == bench.table("calm")


def test_a_study_waits_for_s3_and_finds_what_it_finds_without_an_outage(bench: Bench) -> None:
    outcome = bench.drive("expired", say=bench.send_away("expired", 8.0))
    assert outcome.state == "finished"
    [first] = [line for line in bench.said if "waiting for S3" in line]
    assert "ExpiredToken" in first
    assert [line for line in bench.said if "S3 answers again" in line]
    after = bench.said[bench.said.index(first) : bench.said.index(next(x for x in bench.said if "answers again" in x))]
    assert not [line for line in after if " starts " in line], "nothing is proposed meanwhile"
    assert all(len(row.attempts) == 1 for row in outcome.trials)
    check_unharmed(bench, "expired")


@pytest.mark.slow
def test_a_study_whose_every_trial_lacks_the_same_file_ends_with_one_message(bench: Bench) -> None:
    with pytest.raises(StudyFailed, match=r"no trial can run: model.pretrained: /weights.pt"):
        bench.drive("no-weights", Plan(faults={0: "no-weights"}, fault_epoch=1))
    store = StudyStore(bench.database, "no-weights")
    assert store.load().state == "failed"
    assert {row.state for row in store.trials()} == {"running"}, "none has used up its place in the budget"
    assert bench.drive("no-weights").state == "finished", "once it is there"


@pytest.mark.slow
@pytest.mark.parametrize("habit", ["full", "hang", "busy"])
def test_a_store_that_stays_away_pauses_the_study_and_resume_goes_on(bench: Bench, habit: str) -> None:
    name = f"for-good-{habit}"
    outcome = bench.drive(name, say=bench.send_away(habit), resources={"patience": 6})
    assert outcome.state == "paused"
    assert outcome.message.startswith("S3 has been away for 6 s: ")
    unfinished = [row for row in outcome.trials if not row.finished]
    assert unfinished
    assert not [row for row in outcome.trials if row.state == "failed"]
    assert {row.attempts[-1].outcome for row in unfinished} <= {"interrupted", "paused"}
    bench.endpoint.habit = ""
    assert bench.drive(name, resources={"patience": 6}).state == "finished"
    check_unharmed(bench, name)


@pytest.mark.slow
def test_a_study_whose_newest_checkpoints_were_replaced_goes_on_from_those_before_them(bench: Bench) -> None:
    outcome = bench.drive("replaced", say=bench.send_away("busy"), resources={"patience": 3})
    bench.endpoint.habit = ""
    slug, damaged = StudyStore(bench.database, "replaced").load().slug, []
    for row in outcome.trials:
        states = storage.list_objects(trial_prefix(bench.services.bucket, slug, row.number))
        newest = [each.uri for each in states if "/latest-" in each.uri]
        if not row.finished and newest:
            bucket, key = storage.split_uri(newest[-1])
            storage.client().put_object(Bucket=bucket, Key=key, Body=b"of another program")
            damaged.append(newest[-1])
    assert damaged
    assert bench.drive("replaced", resources={"patience": 3}).state == "finished"
    for uri in damaged:
        assert [line for line in bench.said if "damaged checkpoint is passed over" in line and uri in line]
    check_unharmed(bench, "replaced")
