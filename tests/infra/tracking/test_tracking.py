"""The MLflow record on the real server: replayed, raced, cut off and killed, it ends complete, without doubles."""

from __future__ import annotations

import http.client
import http.server
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.errors import ServiceError, UserError
from infra.services import Services
from infra.stack import processes
from infra.stack import stack as embedded
from infra.tracking import registry
from infra.tracking.calls import Point, connect, experiment_id
from infra.tracking.runs import Tracker

START_MS = 1_700_000_000_000
WAIT_SECONDS = 60.0

Making = Callable[..., Tracker]


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return f"test {request.node.name}"


@pytest.fixture
def tracker(service_environment: Services, experiment: str) -> Iterator[Making]:
    made: list[Tracker] = []

    def make(uri: str = service_environment.mlflow_uri) -> Tracker:
        made.append(Tracker(uri, experiment))
        return made[-1]

    yield make
    for one in made:
        one.close(0.0)


@pytest.fixture
def client(service_environment: Services) -> Any:
    return connect(service_environment.mlflow_uri)


def runs(client: Any, experiment: str) -> dict[str, Any]:
    """Active runs by key; fails when a key has two."""
    found = client.search_runs([experiment_id(client, experiment)], max_results=1000)
    keys = [run.data.tags["agft.trial_key"] for run in found]
    assert len(keys) == len(set(keys)), sorted(keys)
    return dict(zip(keys, found, strict=True))


def points(count: int, *, name: str = "robust_accuracy") -> list[Point]:
    return [Point(name, number / 10, number, START_MS + 1000 * number) for number in range(count)]


def tell_all(tracker: Tracker, *, trials: int = 3) -> None:
    """What a driver replays from the study's database."""
    tracker.ensure_run("s", name="study s", params={"seed": "0"}, tags={"kind": "study"}, start_time_ms=START_MS)
    for number in range(trials):
        key = f"s/{number}"
        tracker.ensure_run(
            key, name=f"trial {number}", parent="s", params={"lr": "0.1"}, tags={"number": str(number)},
            start_time_ms=START_MS,
        )  # fmt: skip
        tracker.log(key, [*points(5), Point("loss", math.nan, 0, START_MS), Point("loss", math.inf, 1, START_MS)])
        tracker.log_text(key, f"config of {number}", "config/trial.yaml")
        tracker.finish(key, "KILLED", START_MS + 60_000)


def test_a_full_replay_adds_nothing(tracker: Making, client: Any, experiment: str) -> None:
    for _ in range(3):  # three drivers, one after the other
        one = tracker()
        tell_all(one)
        assert one.flush(WAIT_SECONDS) == 0
        assert one.dropped == []
        one.close(1.0)
    found = runs(client, experiment)
    assert set(found) == {"s", "s/0", "s/1", "s/2"}
    for number in range(3):
        run = found[f"s/{number}"]
        history = client.get_metric_history(run.info.run_id, "robust_accuracy")
        assert [(m.step, m.value, m.timestamp) for m in history] == [
            (p.step, p.value, p.timestamp_ms) for p in points(5)
        ]
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 2
        assert (run.info.status, run.info.start_time, run.info.end_time) == ("KILLED", START_MS, START_MS + 60_000)
        assert run.data.tags["mlflow.parentRunId"] == found["s"].info.run_id
        assert run.data.params == {"lr": "0.1"}


def test_params_stay_tags_follow_and_a_run_reopens(tracker: Making, client: Any, experiment: str) -> None:
    one = tracker()
    common: dict[str, Any] = {"name": "trial", "start_time_ms": START_MS}
    one.ensure_run("t", params={"lr": "0.1"}, tags={"attempt": "1"}, **common)
    one.finish("t", "FAILED", START_MS + 1)
    one.ensure_run("t", params={"lr": "0.2", "new": "x" * 9000}, tags={"attempt": "2"}, **common)
    assert one.flush(WAIT_SECONDS) == 0
    run = runs(client, experiment)["t"]
    assert (run.info.status, run.data.params["lr"], run.data.tags["attempt"]) == ("FAILED", "0.1", "2")
    assert len(run.data.params["new"]) == 6000
    one.ensure_run("t", params={}, tags={}, reopen=True, **common)
    one.set_tags("t", {"stop_reason": "budget"})
    assert one.flush(WAIT_SECONDS) == 0
    run = runs(client, experiment)["t"]
    assert (run.info.status, run.data.tags["stop_reason"], one.run_id("t")) == ("RUNNING", "budget", run.info.run_id)
    assert one.dropped == []


def test_racing_drivers_make_one_run_for_each_key(tracker: Making, client: Any, experiment: str) -> None:
    racers = [tracker() for _ in range(3)]
    for number in range(5):
        for one in racers:
            one.ensure_run(f"k{number}", name="raced", params={}, tags={}, start_time_ms=START_MS)
            one.log(f"k{number}", points(3))
    assert [one.flush(WAIT_SECONDS) for one in racers] == [0, 0, 0]
    last = tracker()  # the next driver settles what a race may have left
    for number in range(5):
        last.ensure_run(f"k{number}", name="raced", params={}, tags={}, start_time_ms=START_MS)
        last.log(f"k{number}", points(3))
    assert last.flush(WAIT_SECONDS) == 0
    found = runs(client, experiment)
    assert len(found) == 5
    for run in found.values():
        assert len(client.get_metric_history(run.info.run_id, "robust_accuracy")) == 3
    for number in range(5):  # a driver that still knows a deleted double finds the right run by itself
        racers[0].set_tags(f"k{number}", {"late": "yes"})
    assert racers[0].flush(WAIT_SECONDS) == 0
    assert [run.data.tags.get("late") for run in runs(client, experiment).values()] == ["yes"] * 5


class LossyProxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on to MLflow, but cuts the connection instead of answering the first `runs/create`."""

    target = ""
    lost = 0

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection(self.target, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if self.path.endswith("runs/create") and LossyProxy.lost == 0:
            LossyProxy.lost += 1
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_a_run_whose_creation_was_not_answered_is_found_not_doubled(
    tracker: Making, client: Any, experiment: str, service_environment: Services
) -> None:
    LossyProxy.target, LossyProxy.lost = service_environment.mlflow_uri.removeprefix("http://"), 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LossyProxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        one = tracker(f"http://127.0.0.1:{server.server_port}")
        tell_all(one, trials=1)
        assert one.flush(WAIT_SECONDS) == 0
        assert LossyProxy.lost == 1
        assert set(runs(client, experiment)) == {"s", "s/0"}
    finally:
        server.shutdown()
        server.server_close()


def test_a_killed_server_costs_the_caller_nothing_and_gets_everything_later(
    tracker: Making, client: Any, experiment: str, service_environment: Services, caplog: pytest.LogCaptureFixture
) -> None:
    home = service_environment.home
    assert home is not None
    one = tracker()
    one.ensure_run("t", name="t", params={}, tags={}, start_time_ms=START_MS)
    one.log("t", points(5))
    assert one.flush(WAIT_SECONDS) == 0
    with caplog.at_level(logging.WARNING, "agft.tracking"):
        for process in processes.members(f"{home}:mlflow"):
            os.kill(process.pid, signal.SIGKILL)
        one.log("t", points(10))
        one.ensure_run("u", name="u", params={"a": "b"}, tags={}, start_time_ms=START_MS)
        one.log_text("u", "text", "note.txt")
        one.finish("u", "FINISHED", START_MS + 5)
        one.log("t", points(2500, name="loss"))
        assert one.flush(1.5) == 7  # 1 + 1 + 1 + 1 + 3 batches
        embedded.up(home)
        assert one.flush(WAIT_SECONDS) == 0
    said = [record.message for record in caplog.records if record.name == "agft.tracking"]
    assert len(said) == 2, said
    assert "takes no records" in said[0]
    assert "takes records again" in said[1]
    assert service_environment.mlflow_password not in "".join(said)
    found = runs(client, experiment)
    assert found["u"].info.status == "FINISHED"
    assert len(client.get_metric_history(found["t"].info.run_id, "robust_accuracy")) == 10
    assert len(client.get_metric_history(found["t"].info.run_id, "loss")) == 2500


@pytest.mark.slow
def test_while_storage_is_away_artifacts_wait_and_records_pass_them(
    tracker: Making, client: Any, experiment: str, service_environment: Services, caplog: pytest.LogCaptureFixture
) -> None:
    home = service_environment.home
    assert home is not None
    one = tracker()
    one.ensure_run("t", name="t", params={}, tags={}, start_time_ms=START_MS)
    assert one.flush(WAIT_SECONDS) == 0
    try:
        for process in processes.members(f"{home}:seaweedfs"):
            process.kill()
        with caplog.at_level(logging.WARNING, "agft.tracking"):
            one.log_text("t", "text", "note.txt")
            one.log("t", points(3))
            one.finish("t", "FINISHED", START_MS + 5)
            deadline = time.monotonic() + WAIT_SECONDS
            while one.flush(1.0) > 1 and time.monotonic() < deadline:
                continue
            run = runs(client, experiment)["t"]
            assert run.info.status == "FINISHED"
            assert len(client.get_metric_history(run.info.run_id, "robust_accuracy")) == 3
            assert one.flush(0.0) == 1
    finally:
        embedded.up(home)
    assert one.flush(WAIT_SECONDS) == 0
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    assert len([record for record in caplog.records if "takes no artifacts" in record.message]) == 1


def test_of_a_file_that_changes_while_the_server_is_away_only_the_newest_version_waits(
    tracker: Making, client: Any, experiment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = tracker("http://127.0.0.1:9")  # nobody answers there
    one.ensure_run("t", name="t", params={}, tags={}, start_time_ms=START_MS)
    for version in range(20):
        one.log_text("t", f"version {version}", "report/report.html")
        one.log_text("t", f"version {version}", "report/other.html")
    assert one.flush(0.2) <= 4  # the run, the file under way, the newest of each
    later = tracker()
    later.ensure_run("t", name="t", params={}, tags={}, start_time_ms=START_MS)
    for version in range(20):
        later.log_text("t", f"version {version}", "report/report.html")
    assert later.flush(WAIT_SECONDS) == 0
    path = client.download_artifacts(later.run_id("t"), "report/report.html", str(tmp_path))
    assert Path(path).read_text() == "version 19"


def test_what_the_server_refuses_for_good_is_noted_and_does_not_hold_up_the_rest(
    tracker: Making, client: Any, experiment: str
) -> None:
    one = tracker()
    one.ensure_run("t", name="t", params={}, tags={}, start_time_ms=START_MS)
    one.set_tags("never made", {"a": "b"})
    one.set_tags("t", {"not@legal": "x"})
    one.log("t", points(2))
    assert one.flush(WAIT_SECONDS) == 0
    assert len(client.get_metric_history(one.run_id("t"), "robust_accuracy")) == 2
    assert [note.split(":")[0] for note in one.dropped] == ["never made", "t"]


def gone(experiment: str, client: Any, services: Services) -> None:
    """Delete the experiment for good, as `mlflow gc` does on the server's machine."""
    assert services.home is not None
    identity = client.get_experiment_by_name(experiment).experiment_id
    client.delete_experiment(identity)
    code = "import sys; from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Store; "
    code += "store = Store('sqlite:///mlflow.db', '/nowhere'); store._hard_delete_experiment(sys.argv[1])"
    folder = services.home / "mlflow"
    subprocess.run([sys.executable, "-c", code, identity], cwd=folder, check=True, capture_output=True)


def experiment_deleted(experiment: str, client: Any, services: Services) -> None:
    client.delete_experiment(client.get_experiment_by_name(experiment).experiment_id)


def every_run_deleted(experiment: str, client: Any, services: Services) -> None:
    for run in runs(client, experiment).values():
        client.delete_run(run.info.run_id)


def one_finished_run_deleted(experiment: str, client: Any, services: Services) -> None:
    client.delete_run(runs(client, experiment)["s/0"].info.run_id)


@pytest.mark.parametrize(
    "deleted",
    [experiment_deleted, every_run_deleted, *(pytest.param(each, marks=pytest.mark.slow) for each in (
        one_finished_run_deleted, gone))],
)  # fmt: skip
def test_what_somebody_deletes_in_mlflow_comes_back_with_all_that_is_stored(
    client: Any, experiment: str, service_environment: Services, deleted: Callable[..., None]
) -> None:
    one = Tracker(service_environment.mlflow_uri, experiment, tell_all)
    tell_all(one)
    assert one.flush(WAIT_SECONDS) == 0
    deleted(experiment, client, service_environment)
    one.log("s/1", points(7, name="new"))  # of a trial that runs
    one.ensure_run("s/3", name="trial 3", parent="s", params={}, tags={}, start_time_ms=START_MS)
    one.check("s")
    assert one.flush(WAIT_SECONDS) == 0
    assert one.close(0.0) == 0
    assert one.dropped == []
    found = runs(client, experiment)
    assert set(found) == {"s", "s/0", "s/1", "s/2", "s/3"}
    for number in range(3):
        run = found[f"s/{number}"]
        assert run.info.status == "KILLED"
        assert run.data.tags["mlflow.parentRunId"] == found["s"].info.run_id
        assert len(client.get_metric_history(run.info.run_id, "robust_accuracy")) == 5
    assert len(client.get_metric_history(found["s/1"].info.run_id, "new")) == 7


def test_what_was_deleted_before_a_driver_starts_comes_back(
    tracker: Making, client: Any, experiment: str, service_environment: Services
) -> None:
    first, later = tracker(), tracker()
    tell_all(first)
    assert first.flush(WAIT_SECONDS) == 0
    before = {key: run.info.run_id for key, run in runs(client, experiment).items()}
    every_run_deleted(experiment, client, service_environment)
    experiment_deleted(experiment, client, service_environment)
    tell_all(later)
    assert later.flush(WAIT_SECONDS) == 0
    assert (first.dropped, later.dropped) == ([], [])
    assert {key: run.info.run_id for key, run in runs(client, experiment).items()} == before


def test_artifacts_land_in_the_embedded_storage(
    tracker: Making, client: Any, experiment: str, tmp_path: Path, service_environment: Services
) -> None:
    one = tracker()
    picture = tmp_path / "local name.png"
    picture.write_bytes(b"\x89PNG first")
    one.ensure_run("t", name="t", params={}, tags={}, start_time_ms=START_MS)
    one.log_text("t", "older", "report.md")
    one.log_text("t", "newer ε = 4/255", "report.md")
    one.log_file("t", picture, "figures/pareto.png")
    picture.write_bytes(b"changed after the call")
    assert one.flush(WAIT_SECONDS) == 0
    folder = f"s3://{service_environment.bucket}/mlflow/{experiment_id(client, experiment)}/{one.run_id('t')}/artifacts"
    stored = {
        entry.uri.removeprefix(f"{folder}/"): storage.get_bytes(entry.uri) for entry in storage.list_objects(folder)
    }
    assert {name: found[0] for name, found in stored.items() if found} == {
        "report.md": "newer ε = 4/255".encode(),
        "figures/pareto.png": b"\x89PNG first",
    }


def test_illegal_names_are_the_callers_mistake(tracker: Making, tmp_path: Path) -> None:
    one = tracker()
    with pytest.raises(UserError, match="metric name 'a@b'"):
        one.log("t", [Point("a@b", 1.0, 0, START_MS)])
    with pytest.raises(UserError, match="run key"):
        one.ensure_run("it's", name="t", params={}, tags={}, start_time_ms=START_MS)
    with pytest.raises(UserError, match="artifact path"):
        one.log_text("t", "x", "../secret")
    assert one.flush(0.0) == 0


def test_refused_credentials_and_dead_servers_are_named(
    service_environment: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:9: looking for 'm'"):
        registry.registered("http://127.0.0.1:9", "m")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(ServiceError, match="refuses our credentials"):
        registry.registered(service_environment.mlflow_uri, "m")


def test_a_model_version_is_registered_once_for_each_key(
    tracker: Making, client: Any, tmp_path: Path, service_environment: Services
) -> None:
    uri = service_environment.mlflow_uri
    one = tracker()
    one.ensure_run("t", name="t", params={}, tags={}, start_time_ms=START_MS)
    assert one.flush(WAIT_SECONDS) == 0
    card = tmp_path / "some card.md"
    card.write_text("# card")

    def register(key: str) -> int:
        return registry.register_version(
            uri, name="robust-clip", key=key, source_uri=f"s3://agft/models/robust-clip/{key}",
            run_id=one.run_id("t") or "", metrics={"robust_accuracy": 0.5}, params={"eps": "4/255"},
            tags={"sha256": "ab"}, description="why this one", artifacts={"docs/card.md": card},
        )  # fmt: skip

    assert registry.registered(uri, "robust-clip") == registry.Registered({}, {})
    assert [register("a"), register("b"), register("a"), register("b")] == [1, 2, 1, 2]
    assert registry.registered(uri, "robust-clip") == registry.Registered({"a": 1, "b": 2}, {})
    version = client.get_model_version("robust-clip", "1")
    assert (version.source, version.run_id, version.tags["sha256"]) == (
        "s3://agft/models/robust-clip/a",
        one.run_id("t"),
        "ab",
    )
    model = client.get_logged_model(version.tags["agft.logged_model_id"])
    assert [metric.value for metric in model.metrics] == [0.5]
    assert model.params == {"eps": "4/255"}
    for key, number in (("b", 2), ("a", 1), ("a", 1)):
        registry.project_aliases(uri, "robust-clip", {"champion": key})
        assert registry.registered(uri, "robust-clip").aliases == {"champion": number}
