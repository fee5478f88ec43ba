"""A study on a shared cluster with token authentication, seen by a terminal from submit to report. 5 nested trials."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from infra import storage
from infra.cluster.jobs import Jobs
from infra.services import Services
from study.store.store import StudyStore
from tests.support.services.clusters import TwoNodes, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(900)]

STUDY = """\
name: shared
model: {arch: tiny-clip, pretrained: bundled}
method: {name: agft, logit_scale: {of_model: 1.0}}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}
train: {epochs: 2, batch_size: 64, samples_per_epoch: 256}
evaluate: {select: {attack: {eps: [4/255], steps: 2}, samples: 24}}
scheduler: {name: none}
search: {method.scale_ratio: {low: 0.5, high: 1.0}}
resources: {workers: 1, cpus_per_worker: 1}
budget: {trials: 3}
"""


@pytest.fixture(scope="module")
def cluster(stack: Services) -> Iterator[TwoNodes]:
    with two_nodes(stack) as cluster:
        (cluster.folder / "study.yaml").write_text(STUDY)
        yield cluster


@pytest.fixture
def jobs_api(cluster: TwoNodes) -> str:
    """Everything that the Jobs API shows, as text."""
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/")
    request.add_header("Authorization", f"Bearer {(cluster.folder / 'token').read_text()}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def submitted(cluster: TwoNodes) -> dict[str, str]:
    """Submitted, followed to its end; what each command printed."""
    first = cluster.agft("submit", "study.yaml", "--address", cluster.dashboard)
    early = cluster.agft("status", "shared", "--json")
    again = cluster.agft("submit", "study.yaml", "--address", cluster.dashboard)
    follow = cluster.agft("logs", "shared", "-f", seconds=600)
    return {"first": first.stdout, "early": early.stdout, "again": again.stdout, "follow": follow.stdout}


def test_submit_says_where_the_driver_runs_and_how_to_see_it(submitted):
    assert re.search(r"job agft-shared-\d+-1 submitted at http://127.0.0.1:", submitted["first"])
    assert re.search(r"the driver runs on \S+ \(process \d+\)", submitted["first"])
    assert "agft logs shared -f" in submitted["first"]


def test_submitting_again_finds_the_running_job(submitted):
    assert re.search(r"job agft-shared-\d+-1 is there already", submitted["again"])


def test_status_tells_from_the_database_alone_what_runs_where(submitted):
    [found] = json.loads(submitted["early"])
    assert found["state"] == "running"
    assert found["driver"]["pid"] > 0
    counts = found["counts"]
    assert counts["done"] + counts["running"] + counts["queued"] == found["budget"] == 3


def test_logs_follow_the_driver_to_its_last_line(submitted):
    text = submitted["follow"]
    assert "3 of 3 trials done" in text
    assert text.count("trial   0  epoch 2/2") == 1
    assert text.rstrip().endswith("the driver has ended")


def test_the_study_is_finished_and_its_report_is_written_from_this_terminal(cluster, submitted):
    status = cluster.status("shared")
    assert status["state"] == "finished"
    assert status["counts"]["complete"] == 3
    assert status["best"]["robust_accuracy"] > 0
    assert status["driver"] is None
    assert status["device_hours"] > 0
    table = cluster.agft("status").stdout
    assert re.search(r"shared +│ finished +│ +3/3", table)
    report = cluster.agft("report", "shared").stdout.strip()
    assert os.path.exists(report)


def test_the_log_can_be_read_again_and_lies_in_s3_under_the_study(cluster, submitted, monkeypatch):
    assert cluster.agft("logs", "shared").stdout == submitted["follow"]
    for name, value in cluster.services.environment().items():
        monkeypatch.setenv(name, value)
    study = StudyStore(cluster.database, "shared").load()
    place = f"s3://{cluster.services.bucket}/studies/shared-{study.created_ms}/logs"
    assert [stored.uri for stored in storage.list_objects(place)] == [f"{place}/a000001.log"]


def test_no_secret_is_in_what_the_jobs_api_and_the_logs_show(cluster, submitted, jobs_api):
    secrets = [cluster.services.secret_key, cluster.services.mlflow_password, cluster.database,
               (cluster.folder / "token").read_text()]  # fmt: skip
    [job] = [job for job in json.loads(jobs_api) if job["submission_id"]]
    assert job["runtime_env"]["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    for secret in secrets:
        assert secret not in jobs_api
        assert all(secret not in text for text in submitted.values())


def wait_for(found: Callable[[], object], what: str, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def test_a_submitted_study_pauses_for_any_terminal_and_for_ray_and_goes_on_when_submitted_again(cluster, monkeypatch):
    long = STUDY.replace("shared", "long").replace("epochs: 2", "epochs: 300").replace("trials: 3", "trials: 1")
    (cluster.folder / "long.yaml").write_text(long)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.folder / "token"))
    jobs = Jobs(cluster.dashboard)

    def reached() -> int:
        return max((trial["epochs"] for trial in cluster.status("long")["trials"]), default=0)

    cluster.agft("submit", "long.yaml", "--address", cluster.dashboard, "--priority", "2")
    wait_for(lambda: reached() >= 1, "the first epoch")
    assert "asked" in cluster.agft("pause", "long").stdout
    wait_for(lambda: cluster.status("long")["state"] == "paused", "the study pauses")
    before = reached()

    again = cluster.agft("submit", "long.yaml", "--address", cluster.dashboard, "--priority", "2").stdout
    [identity] = re.findall(r"job (agft-long-\d+-2) submitted", again)
    wait_for(lambda: reached() > before, "another epoch")
    jobs.stop(identity)
    wait_for(lambda: jobs.job(identity).ended, "Ray's own way to stop a job ends it")
    assert cluster.status("long")["state"] == "paused"
    [trial] = cluster.status("long")["trials"]
    assert (trial["state"], trial["attempts"]) == ("unfinished", 2)
    shown = re.findall(r"trial +0  epoch (\d+)/", cluster.agft("logs", "long").stdout)
    assert len(shown) == len(set(shown)), "no epoch is trained again"
    cluster.agft("stop", "long")
    assert cluster.status("long")["state"] == "stopped"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN_PATH": ""}, "demands a token (401)"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "refuses the token (403)"),
    ],
)
def test_without_the_clusters_token_nothing_is_stored(cluster, change, said):
    done = cluster.agft(
        "submit", "study.yaml", "--name", "other", "--address", cluster.dashboard, check=False, **change
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.agft("status", "other", check=False).returncode == 2


def test_a_trial_that_no_node_can_hold_is_refused_with_the_numbers(cluster):
    (cluster.folder / "large.yaml").write_text(STUDY.replace("cpus_per_worker: 1", "cpus_per_worker: 2"))
    done = cluster.agft("submit", "large.yaml", "--name", "large", "--address", cluster.dashboard, check=False)
    assert done.returncode == 2
    assert "1 worker(s) of 2 CPU" in done.stderr
    assert cluster.agft("status", "large", check=False).returncode == 2


def test_a_database_that_the_nodes_do_not_have_is_told_by_the_drivers_first_lines(cluster, tmp_path):
    done = cluster.agft("submit", "study.yaml", "--name", "elsewhere", "--address", cluster.dashboard, check=False,
                        AGFT_STUDY_DB=f"sqlite:///{tmp_path}/other.db")  # fmt: skip
    assert done.returncode == 1
    assert "study 'elsewhere' is not in the study database of this node" in done.stderr


def test_a_node_that_lacks_what_the_study_needs_is_named_before_anything_is_driven(cluster):
    cluster.start_worker("bare", without=["AWS_SECRET_ACCESS_KEY"])
    try:
        done = cluster.agft("submit", "study.yaml", "--name", "bare", "--address", cluster.dashboard, check=False)
        assert done.returncode == 1
        assert re.search(r"node \S+ \(\w{6}\): not set where `ray start` ran: AWS_SECRET_ACCESS_KEY\n", done.stderr)
        assert cluster.services.secret_key not in done.stderr
        assert cluster.status("bare")["state"] == "queued"
    finally:
        cluster.kill("bare")
