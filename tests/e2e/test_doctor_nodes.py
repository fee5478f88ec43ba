"""`agft doctor` on a cluster of several nodes, each broken in its own way. Slow tier: real Ray nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.jobs import Jobs
from tests.support.services.clusters import TwoNodes, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(stack) -> Iterator[TwoNodes]:
    with two_nodes(stack, head_cpus=1, worker_cpus=1) as nodes:
        yield nodes


def doctor(cluster: TwoNodes, *arguments: str, **more: str) -> tuple[int, list[dict[str, Any]]]:
    done = cluster.agft("doctor", "--json", *arguments, check=False, RAY_ADDRESS=cluster.head_address, **more)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def failures(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """check -> what failed, over all machines."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["state"] == "failed":
            found.setdefault(row["check"], []).append(f"{row['where']}: {row['detail']} -> {row['remedy']}")
    return found


def test_a_sound_cluster_passes_on_every_node(cluster: TwoNodes) -> None:
    code, rows = doctor(cluster)
    assert failures(rows) == {}
    assert code == 0
    places = {row["where"] for row in rows}
    assert len(places) == 3  # this machine, and two nodes
    for place in places:
        checks = {row["check"] for row in rows if row["where"] == place}
        assert {"versions", "S3", "S3 conditional puts", "MLflow", "GPUs", "shared memory", "disk", "clock"} <= checks
    said = {row["check"]: row["detail"] for row in rows if row["where"] == "this machine"}
    assert said["Ray token"] == "demanded"
    assert "2 nodes" in said["Ray"]


def test_from_outside_a_job_looks_and_is_forgotten(cluster: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    done = cluster.agft("doctor", "--json", "--address", cluster.dashboard, check=False)
    rows = json.loads(done.stdout)
    assert failures(rows) == {}
    assert done.returncode == 0
    places = {row["where"] for row in rows}
    assert len(places) == 4, places  # this machine, the cluster's head, two nodes
    assert {"this machine", "the cluster"} < places
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.folder / "token"))
    assert Jobs(cluster.dashboard).of("agft-doctor") == []

    wrong = {"RAY_AUTH_TOKEN_PATH": "/dev/null"}
    done = cluster.agft("doctor", "--json", "--address", cluster.dashboard, check=False, **wrong)
    [text] = failures(json.loads(done.stdout))["Ray"]
    assert "token" in text


def test_a_cluster_that_is_wrong_for_the_study_or_refuses_us_is_named(cluster: TwoNodes, tmp_path: Path) -> None:
    recipe = (Path(__file__).parents[2] / "study" / "recipes" / "demo.yaml").read_text()
    file = tmp_path / "study.yaml"
    file.write_text(recipe.replace("resources: {", "resources: {gpus_per_worker: 1, "))
    code, rows = doctor(cluster, str(file))
    assert code == 1
    assert "the whole cluster has 0" in failures(rows)["GPUs"][0]

    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    code, rows = doctor(cluster, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert code == 1
    [text] = failures(rows)["Ray"]
    assert "refuses the token" in text

    done = cluster.agft("doctor", "--json", check=False, RAY_ADDRESS="127.0.0.1:9")
    [text] = failures(json.loads(done.stdout))["Ray"]
    assert "start the cluster" in text


def test_a_node_of_another_version_or_without_services_is_named(
    cluster: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "optuna-4.9.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: optuna\nVersion: 4.9.0\n")
    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    cluster.start_worker("other")
    monkeypatch.delenv("PYTHONPATH")
    cluster.start_worker("bare", without=("AGFT_BUCKET", "MLFLOW_TRACKING_URI"))
    try:
        code, rows = doctor(cluster)
    finally:
        cluster.kill("other")
        cluster.kill("bare")
    assert code == 1
    found = failures(rows)
    assert set(found) == {"versions", "environment"}, found
    [version], [environment] = found["versions"], found["environment"]
    assert "optuna is 4.9.0, on the driver 5.0.0" in version
    assert version.startswith("node ")
    assert "not set where `ray start` ran: MLFLOW_TRACKING_URI, AGFT_BUCKET" in environment


def test_a_cluster_without_a_token_is_named(stack, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_nodes(stack, head_cpus=1, worker_cpus=0) as open_one:
        open_one.stop()
        monkeypatch.setattr(TwoNodes, "environment", _without_token(TwoNodes.environment))
        open_one.ports = {}
        open_one.start_head()
        code, rows = doctor(open_one)
    assert code == 1
    [text] = failures(rows)["Ray token"]
    assert "answers without a token" in text
    assert "RAY_AUTH_MODE=token" in text


def _without_token(environment: Any) -> Any:
    def changed(self: TwoNodes, **more: str) -> dict[str, str]:
        found = {name: value for name, value in environment(self, **more).items() if not name.startswith("RAY_AUTH")}
        return {**found, "RAY_AUTH_MODE": "disabled"}

    return changed
