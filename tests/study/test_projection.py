"""A study on the real MLflow server: runs that say what they are, where they ran, from what, and what they took."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.services import Services
from infra.tracking.calls import connect, experiment_id, find_run
from infra.tracking.runs import Tracker
from study.control.lifecycle import stop_study
from study.report.live import LiveReport
from study.results.ranking import ranked
from study.store.lease import owner_identity
from study.store.rows import Proposal
from study.store.store import StudyStore
from study.tracking import (
    EXPERIMENT,
    METRICS,
    attempt_tags,
    describe_study,
    mark_best,
    project_best,
    project_epochs,
    project_outcome,
    project_study,
    project_trial,
    study_key,
    tell_mlflow,
    trial_key,
)
from tests.support.light import create_measured, light_study
from tests.support.studies import BASELINE, FAILED, TWICE, synthetic_study

WAIT_SECONDS = 120.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return synthetic_study(tmp_path_factory.mktemp("study"), finished=True)


@pytest.fixture
def tracker(service_environment: Services, request: pytest.FixtureRequest) -> Iterator[Tracker]:
    one = Tracker(service_environment.mlflow_uri, f"test {request.node.name}")
    yield one
    one.close(0.0)


def project(tracker: Tracker, store: StudyStore, numbers: list[int]) -> None:
    """What a driver sends, of these trials."""
    study, rows = store.load(), store.trials()
    project_study(tracker, study)
    for row in (rows[number] for number in numbers):
        project_trial(tracker, study, row)
        project_epochs(tracker, study, row.number, row.epochs)
        project_outcome(tracker, study, row)
    project_best(tracker, study, rows)
    assert tracker.flush(WAIT_SECONDS) == 0
    assert tracker.dropped == []


def test_every_trial_says_where_it_ran_from_what_and_how_it_ended(
    tracker: Tracker, store: StudyStore, service_environment: Services
) -> None:
    failed = next(iter(FAILED))
    project(tracker, store, [0, failed, TWICE])
    client = connect(service_environment.mlflow_uri)
    study = store.load()

    def run(number: int) -> Any:
        return client.get_run(tracker.run_id(trial_key(study, number)))

    tags = run(0).data.tags
    for name in ("revision", "dirty", "device", "host", "python", "versions", "weights.sha256", "data.train.sha256",
                 "data.dev.0.sha256", "best.uri", "best.sha256", "attempts", "state"):  # fmt: skip
        assert tags.get(f"agft.{name}"), name
    assert (tags["agft.revision"], tags["agft.dirty"], tags["agft.attempts"]) == ("0" * 40, "false", "1")
    assert tags["agft.versions"] == "torch 2.14"
    assert run(failed).data.tags["agft.failure_kind"] == "non-finite"
    assert run(failed).info.status == "FAILED"
    assert run(TWICE).data.tags["agft.attempts"] == "2"
    metrics = run(0).data.metrics
    assert {*METRICS, "robust_accuracy/tiny-shapes", "system/cpu_percent"} <= set(metrics)
    assert len(client.get_metric_history(run(0).info.run_id, "system/cpu_percent")) == 6
    inputs = {each.tags[0].value: each.dataset for each in run(0).inputs.dataset_inputs}
    assert run(0).data.tags["mlflow.runName"] == "000 full length · synthetic"
    assert run(failed).data.tags["mlflow.note.content"].startswith(f"**Trial {failed}: failed**, epoch 1 of 6")
    assert (inputs["train"].name, inputs["train"].digest) == ("tiny-color-shapes", "b" * 36)
    assert inputs["dev"].name in ("tiny-shapes", "tiny-digits")


def test_a_dataset_of_any_name_has_its_curve(
    tracker: Tracker, store: StudyStore, service_environment: Services
) -> None:
    study, row = store.load(), store.trial(0)
    folder = "folder:/data//my pets (2024)~old/"
    scores = next(iter(row.epochs[0].datasets.values()))
    project_study(tracker, study)
    project_trial(tracker, study, row)
    project_epochs(tracker, study, 0, [row.epochs[0].model_copy(update={"datasets": {folder: scores}})])
    assert tracker.flush(WAIT_SECONDS) == 0
    assert tracker.dropped == []
    run = connect(service_environment.mlflow_uri).get_run(tracker.run_id(trial_key(study, 0)))
    assert sum("my-pets-2024" in name for name in run.data.metrics) == 1


def test_sending_everything_again_adds_nothing(
    tracker: Tracker, store: StudyStore, service_environment: Services
) -> None:
    client, study = connect(service_environment.mlflow_uri), store.load()
    seen = []
    for _ in range(2):
        project(tracker, store, [0])
        run = client.get_run(tracker.run_id(trial_key(study, 0)))
        points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        seen.append((len(run.inputs.dataset_inputs), {name: len(found) for name, found in points.items()}))
    assert seen[0] == seen[1]
    assert seen[0][0] == 3


def test_the_best_after_each_trial_is_the_same_whether_sent_one_by_one_or_at_once(
    tracker: Tracker, store: StudyStore, service_environment: Services
) -> None:
    client, study = connect(service_environment.mlflow_uri), store.load()
    done = sorted((row for row in store.trials() if row.finished), key=lambda row: row.ended_ms)
    project_study(tracker, study)

    def points() -> dict[str, list[tuple[int, int, float]]]:
        assert tracker.flush(WAIT_SECONDS) == 0
        run = tracker.run_id(study_key(study))
        return {
            name: sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(run, name))
            for name in ("best_clean_accuracy", "best_robust_accuracy")
        }

    for place, row in enumerate(done, start=1):
        project_best(tracker, study, done[:place], newest=row.number)
    one_by_one = points()
    project_best(tracker, study, done)
    assert points() == one_by_one
    best = [value for _, _, value in one_by_one["best_robust_accuracy"]]
    assert len(best) > 3
    assert best == sorted(best)
    assert best[-1] > best[0]


def test_the_list_of_runs_opens_with_this_study_s_trials_the_best_first_and_marked(
    tracker: Tracker, store: StudyStore, service_environment: Services
) -> None:
    client, study, rows = connect(service_environment.mlflow_uri), store.load(), store.trials()
    assert study.goal is not None
    first, second = ranked(rows, study.goal)[:2]
    pruned = next(row for row in rows if row.state == "pruned")
    project(tracker, store, [first.number, second.number, pruned.number])

    def names() -> list[str]:
        assert tracker.flush(WAIT_SECONDS) == 0
        runs = [client.get_run(tracker.run_id(trial_key(study, row.number))) for row in (first, second)]
        return [run.info.run_name for run in runs]

    plain = [f"{row.number:03d} full length · synthetic" for row in (first, second)]
    best = [f"{row.number:03d} ★ best · synthetic" for row in (first, second)]
    project_outcome(tracker, study, first)
    mark_best(tracker, study, [row for row in rows if row is not first])
    assert names() == [plain[0], best[1]]
    mark_best(tracker, study, rows, newest=first.number)  # a better one ends: the mark goes over to it
    assert names() == [best[0], plain[1]]
    stopped = client.get_run(tracker.run_id(trial_key(study, pruned.number)))
    assert (stopped.info.status, stopped.data.tags["agft.state"]) == ("FINISHED", "pruned")
    assert "asha at epoch" in stopped.data.tags["mlflow.note.content"]
    address = tracker.view_page(study_key(study))
    experiment = client.get_experiment(experiment_id(client, tracker.experiment))
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{address.rpartition('=')[2]}"])
    assert "workflowType=machine_learning" in address
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`best_robust_accuracy`", False)
    assert view["runsExpanded"] == {tracker.run_id(study_key(study)): True}
    assert {"metrics.`best_clean_accuracy`", "params.`method.scale_ratio`"} <= set(view["selectedColumns"])
    order = [f"{view['orderByKey']} DESC"]
    found = client.search_runs([experiment.experiment_id], view["searchFilter"], order_by=order)
    assert first.number in {int(run.data.tags.get("agft.optuna_number", -1)) for run in found[:2]}


def test_the_description_links_to_the_report_the_best_trial_and_the_checkpoints(
    tracker: Tracker, store: StudyStore, service_environment: Services
) -> None:
    study, rows = store.load(), store.trials()
    best = max((r for r in rows if r.state == "complete" and r.last.best_feasible),
               key=lambda r: r.last.best_robust_accuracy)  # fmt: skip
    project(tracker, store, [best.number])
    client = connect(service_environment.mlflow_uri)
    own, of_best = tracker.run_page(study_key(study)), tracker.run_page(trial_key(study, best.number))
    text = client.get_run(tracker.run_id(study_key(study))).data.tags["mlflow.note.content"]
    assert f"[interactive report]({own}/artifacts/report/report.html)" in text
    assert f"[trial {best.number}]({of_best})" in text
    assert "`s3://agft/studies/x/trials/NUMBER/`" in text
    assert f"| unmodified CLIP | {BASELINE.robust_accuracy:.1%} |" in text
    project_study(tracker, study, reopen=False)  # as a promotion does: what is said stays
    assert tracker.flush(WAIT_SECONDS) == 0
    assert client.get_run(tracker.run_id(study_key(study))).data.tags["mlflow.note.content"] == text


def test_a_description_without_known_addresses_has_no_empty_links(store: StudyStore) -> None:
    text = describe_study(store.load(), store.trials(), lambda key: None)
    assert "](" not in text
    assert "None" not in text


def test_an_attempt_that_never_reported_has_no_invented_provenance(store: StudyStore) -> None:
    row = store.trials()[TWICE]
    bare = [type(attempt)(attempt.token, attempt.started_ms) for attempt in row.attempts]
    assert attempt_tags(bare) == {"agft.attempts": "2"}
    assert attempt_tags([row.attempts[0], bare[1]])["agft.attempts"] == "2"
    assert "agft.revision" in attempt_tags([row.attempts[0], bare[1]])


def test_the_live_report_is_attached_to_the_study_s_run_and_links_its_trials(
    tracker: Tracker, store: StudyStore, service_environment: Services, tmp_path: Path
) -> None:
    project(tracker, store, [0, 1])
    live = LiveReport(store, tracker)
    live.close()
    assert tracker.flush(WAIT_SECONDS) == 0
    client, study = connect(service_environment.mlflow_uri), store.load()
    run = tracker.run_id(study_key(study))
    names = {Path(found.path).name for found in client.list_artifacts(run, "report")}
    assert {"report.html", "report.md", "report.json", "tradeoff.png", "timeline.png"} <= names
    page = Path(client.download_artifacts(run, "report/report.html", str(tmp_path))).read_text()
    assert len(set(re.findall(r'href="(http[^"]+/#/[^"]+)"', page))) == 3  # the study's run, and both trials' runs
    identity = experiment_id(client, tracker.experiment)
    assert f"/#/experiments/{identity}/runs/{tracker.run_id(trial_key(study, 1))}" in page


def test_what_is_stopped_while_nobody_drives_is_over_in_mlflow_too(
    service_environment: Services, tmp_path: Path
) -> None:
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "cut")
    create_measured(store, light_study("cut"))
    token = store.acquire(owner_identity())
    store.start_trial(token, Proposal(0, {}), {"train": {"epochs": 2}})
    study = store.load()
    driver = Tracker(service_environment.mlflow_uri, EXPERIMENT)
    project_study(driver, study)
    project_trial(driver, study, store.trial(0))
    assert driver.close(WAIT_SECONDS) == 0
    store.release(token, "paused")
    stop_study(store)
    said: list[str] = []
    for _ in range(2):
        tell_mlflow(store, tmp_path, said.append)
    client = connect(service_environment.mlflow_uri)
    experiment = experiment_id(client, EXPERIMENT)
    runs = [find_run(client, experiment, key) for key in (study_key(study), trial_key(study, 0))]
    assert [run.info.status for run in runs if run] == ["KILLED", "FINISHED"]
    assert said == []
