"""The driver is killed between every pair of writes, and at random moments; the next one finds nothing lost or twice.

Light trials (`light.py`), everything else real: Ray, PostgreSQL, S3, MLflow, Optuna, and SIGKILL.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from infra import storage
from infra.failpoint import FAILPOINTS
from infra.tracking.calls import connect
from study.artifacts.checkpoints import scratch_prefix, trial_prefix
from study.control.lifecycle import extend_study
from study.store.requests import ask, pending
from study.store.store import StudyStore
from study.tracking import EXPERIMENT, study_key
from tests.support.services.clusters import TwoNodes, two_nodes

pytestmark = pytest.mark.timeout(1800)
TRIALS, EPOCHS = 5, 3
STUDY = f"""\
name: NAME
model: {{arch: tiny-clip, pretrained: bundled}}
method: {{name: agft, logit_scale: {{of_model: 1.0}}}}
data: {{train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}}
train: {{epochs: {EPOCHS}}}
search:
  method.scale_ratio: {{low: 0.5, high: 1.0}}
  train.optimizer.lr: {{low: 1e-5, high: 1e-3, log: true}}
warm_starts: [{{}}, {{method.scale_ratio: 0.7}}]
lag: 1
scheduler: {{name: asha, grace_fraction: 0.3, reduction_factor: 2, min_trials: 1, finish: 1}}
sampler: {{name: tpe, startup_trials: 3}}
resources: {{workers: 1, cpus_per_worker: 1, max_concurrent: 2}}
budget: {{trials: {TRIALS}}}
"""
LIGHT = str(Path(__file__).parents[1] / "support" / "light.py")
EARLY = ("outcome.stored",)  # in the default tier
AFTER_REQUESTS = ("request.obeyed", "drop.stored", "drop.projected")  # reached only when somebody asks
ELSEWHERE = ("promotion.", "head.")  # of promotions: tests/faults/test_promotion_faults.py
DURING = [name for name in FAILPOINTS if name not in AFTER_REQUESTS and not name.startswith(ELSEWHERE)]
# The passage at which the process dies: in the middle of the study where there are several.
PASSAGE = {"trial.reopened": 1, "trial": 3, "report": 5, "verdict": 2, "outcome": 2, "mlflow": 2}


@pytest.fixture(scope="module")
def cluster(stack) -> Iterator[TwoNodes]:
    with two_nodes(stack, head_cpus=2, worker_cpus=0) as nodes:
        yield nodes


@dataclass
class Study:
    """A study of light trials on the cluster, driven by processes that may be killed."""

    cluster: TwoNodes
    name: str

    @property
    def store(self) -> StudyStore:
        return StudyStore(self.cluster.database, self.name)

    def start(self, *, failpoint: str = "", scale: float = 0.05) -> subprocess.Popen[str]:
        path = self.cluster.folder / f"{self.name}.yaml"
        path.write_text(STUDY.replace("NAME", self.name))
        more = {"AGFT_FAILPOINT": failpoint} if failpoint else {}
        environment = self.cluster.environment(RAY_ADDRESS=self.cluster.head_address, **more)
        return subprocess.Popen(
            [sys.executable, LIGHT, str(path), "--scale", str(scale)], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def drive(self, *, failpoint: str = "") -> tuple[int, str]:
        """To the driver's end: its exit code and what it printed."""
        process = self.start(failpoint=failpoint)
        text, _ = process.communicate(timeout=600)
        return process.returncode, text


def snapshot(store: StudyStore) -> dict[int, Any]:
    """What is final: it must not change any more."""
    return {row.number: row for row in store.trials() if row.finished}


def check_whole(study: Study, monkeypatch: pytest.MonkeyPatch, *, trials: int = TRIALS) -> None:
    """The study has finished, and every record of it, on every side, is there once."""
    for name, value in study.cluster.services.environment().items():
        monkeypatch.setenv(name, value)
    store, rows = study.store, study.store.trials()
    row = store.load()
    assert (row.state, row.lease_owner) == ("finished", None)
    assert [trial.number for trial in rows] == list(range(trials))
    assert all(trial.state in ("complete", "pruned", "dropped") for trial in rows), [trial.state for trial in rows]
    for trial in rows:
        assert [record.epoch for record in trial.epochs] == list(range(1, len(trial.epochs) + 1))
        assert trial.state != "complete" or len(trial.epochs) == EPOCHS
        for role in ("latest", "best"):
            stored = getattr(trial, role)
            assert storage.head(stored.uri).sha256 == stored.sha256
        found = storage.list_objects(f"{trial_prefix('agft', row.slug, trial.number)}/")
        kept = [Path(item.uri).name.partition("-")[0] for item in found]
        assert sorted(kept) == ["best", "latest"]
    assert list(storage.list_objects(f"{scratch_prefix('agft', row.slug)}/")) == []

    proposed = optuna.load_study(study_name=row.optuna_name, storage=study.cluster.database).get_trials()
    dropped = {trial.number for trial in rows if trial.state == "dropped"}
    assert [trial.number for trial in proposed] == list(range(trials))
    assert {t.state.name for t in proposed if t.number not in dropped} <= {"COMPLETE", "PRUNED"}, "no zombie"
    samples = [str(sorted(t.params.items())) for t in proposed if "agft.rerun_of" not in t.user_attrs]
    assert len(set(samples)) == len(samples), "no sample twice"
    assert [t.number for t in proposed if t.user_attrs.get("agft.given") and "agft.rerun_of" not in t.user_attrs] == [
        0,
        1,
    ], "warm starts once"
    assert [dict(t.params) for t in proposed] == [trial.params for trial in rows]
    names = [name for name in optuna.get_all_study_names(study.cluster.database) if name.startswith(f"agft/{row.name}")]
    assert names == [row.optuna_name]

    client = connect(study.cluster.services.mlflow_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    query = f"tags.`agft.study` = '{row.name}'"
    runs = client.search_runs([experiment], query, max_results=100)
    keys = Counter(run.data.tags["agft.trial_key"] for run in runs)
    assert keys == {study_key(row): 1} | {f"{study_key(row)}/{number}": 1 for number in range(trials)}
    assert "RUNNING" not in {run.info.status for run in runs}, {run.info.run_name: run.info.status for run in runs}
    for run in runs:
        key = run.data.tags["agft.trial_key"]
        if "/" in key:
            trial = rows[int(key.rpartition("/")[2])]
            points = client.get_metric_history(run.info.run_id, "robust_accuracy")
            assert sorted(point.step for point in points) == [record.epoch for record in trial.epochs]


def check_untouched(before: dict[int, Any], store: StudyStore) -> None:
    """What had finished was neither run again nor changed."""
    after = snapshot(store)
    for number, row in before.items():
        assert after[number] == row or (row.state, after[number].finishing) == ("pruned", True)


@pytest.mark.parametrize(
    "point", [pytest.param(name, marks=() if name in EARLY else (pytest.mark.slow,)) for name in DURING]
)
def test_a_driver_killed_at_a_failpoint_costs_nothing(cluster, monkeypatch, point):
    study = Study(cluster, "cut-" + point.replace(".", "-"))
    passage = PASSAGE.get(point, PASSAGE.get(point.partition(".")[0], 1))
    code, text = study.drive(failpoint=f"{point}:{passage}")
    assert code == -signal.SIGKILL, f"{point} was not passed {passage} times:\n{text}"
    before = snapshot(study.store)
    attempts = {row.number: len(row.attempts) for row in study.store.trials()}
    code, text = study.drive()
    assert code == 0, text
    check_untouched(before, study.store)
    check_whole(study, monkeypatch)
    assert all(len(row.attempts) <= attempts.get(row.number, 0) + 1 for row in study.store.trials())


@pytest.mark.slow
@pytest.mark.parametrize("point", AFTER_REQUESTS)
def test_a_driver_killed_while_it_obeys_a_user_does_what_was_asked_once(cluster, monkeypatch, point):
    study = Study(cluster, "asked-" + point.replace(".", "-"))
    code, text = study.drive()
    assert code == 0, text
    ask(study.store, "rerun", 1, "")
    ask(study.store, "drop", 2, "by a test")
    code, text = study.drive(failpoint=point)
    assert code == -signal.SIGKILL, text
    code, text = study.drive()
    assert code == 0, text
    check_whole(study, monkeypatch, trials=TRIALS + 2)
    rows = study.store.trials()
    assert [row.number for row in rows if row.state == "dropped"] == [2]
    assert [row.rerun_of for row in rows if row.rerun_of is not None] == [1]
    assert pending(study.store) == []


@pytest.mark.slow
def test_a_driver_killed_at_five_random_moments_costs_nothing(cluster, monkeypatch):
    study = Study(cluster, "random-moments")
    moments, finished = random.Random(7), {}
    for _ in range(5):
        process = study.start(scale=0.6)
        time.sleep(moments.uniform(5, 16))
        process.kill()
        process.communicate(timeout=60)
        rows = study.store.trials()
        check_untouched(finished, study.store)
        finished = {row.number: row for row in rows if row.finished}
    code, text = study.drive()
    assert code == 0, text
    check_untouched(finished, study.store)
    check_whole(study, monkeypatch)


@pytest.mark.slow
def test_a_finished_study_is_extended_and_killed_and_finishes_again(cluster, monkeypatch):
    study = Study(cluster, "extended")
    assert study.drive()[0] == 0
    before = snapshot(study.store)
    extend_study(study.store, trials=2, hours=0, gpu_hours=0)
    assert study.drive(failpoint="trial.stored")[0] == -signal.SIGKILL
    assert study.drive()[0] == 0
    check_untouched(before, study.store)
    check_whole(study, monkeypatch, trials=TRIALS + 2)
