"""`agft evaluate` on a real Ray cluster: the same records whoever computes them, whatever is lost or damaged.

Six workers in all, each of which imports torch: the longest part of these tests.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from infra import storage
from infra.cluster import cluster as ray_cluster
from infra.services import Services
from infra.tracking.calls import connect
from study.cli.main import main
from study.errors import StudyFailed, UserError
from study.evaluation import place as evaluation_lock
from study.evaluation import tracking as evaluation_projection
from study.evaluation.ledger import COLUMNS
from study.evaluation.place import Folder, Prefix, alone_in
from study.statistics import right_of_each
from trainers.evaluation.record import EvaluationRecord

SUITE = """\
name: small
datasets: [tiny-digits, real-digits]
attacks:
  - {attack: {name: pgd, steps: 2}, eps: [6/255], samples: 540}
  - {attack: {name: apgd-dlr, steps: 4}, eps: [2/255, 6/255], samples: 40}
"""
UNITS = 6  # of 512, 28, 512, 28, 40 and 40 images


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of four logical CPUs that every command of this file finds connected."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "AGFT_", "RAY_ADDRESS"))]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        patch.setenv("AGFT_HOME", str(home))
        ray_cluster.connect(num_cpus=4)
        yield home
        ray_cluster.disconnect()


def agft(out: Path | str, *arguments: str, mlflow: bool = False) -> Result:
    file = Path(os.environ["AGFT_HOME"]) / "small.yaml"
    if not file.exists():
        file.write_text(SUITE)
    asked = ["evaluate", "tiny-clip", "--suite", str(file), "--sanity", "none", "--out", str(out), "--json"]
    return CliRunner().invoke(main, [*asked, *([] if mlflow else ["--no-mlflow"]), *arguments])


def done(out: Path | str, *arguments: str, mlflow: bool = False) -> Result:
    result = agft(out, *arguments, mlflow=mlflow)
    assert result.exit_code == 0, result.output
    return result


def files(out: Path) -> dict[str, bytes]:
    """What must be the same: identities of records, and tables of images byte for byte."""
    (folder,) = out.iterdir()
    found = {}
    for path in sorted(folder.glob("records/*/*")):
        data = path.read_bytes()
        if path.suffix == ".json":
            data = EvaluationRecord.model_validate_json(data).identity().encode()
        found[str(path.relative_to(folder))] = data
    return found


def read_record(folder: Path, dataset: str, attack: str) -> EvaluationRecord:
    return EvaluationRecord.model_validate_json((folder / f"records/{dataset}/{attack}.json").read_bytes())


@pytest.fixture(scope="module")
def plain(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated by one worker, seven images at a time."""
    out = tmp_path_factory.mktemp("plain")
    result = done(out, "--workers", "1", "--cpus-per-worker", "1", "--batch-size", "7")
    assert f"{UNITS}/{UNITS}" in result.stderr
    return out


def test_records_and_tables_agree_and_say_what_was_done(plain: Path) -> None:
    (folder,) = plain.iterdir()
    assert len(list(folder.glob("units/*/*/*.safetensors"))) == UNITS
    for dataset, attack, images, parts in (("tiny-digits", "pgd-2", 540, 2), ("real-digits", "apgd-dlr-4", 40, 1)):
        record = read_record(folder, dataset, attack)
        rows = (folder / f"records/{dataset}/{attack}.csv.gz").read_bytes()
        assert record.clean.total == images == record.dataset.sample
        assert sum(right_of_each(rows, None).values()) == record.clean.correct
        for at in record.radii:
            assert sum(right_of_each(rows, at.label).values()) == at.robust.correct
        assert record.radii[-1].robust.correct < record.clean.correct
        assert record.original is not None, "the tiny CLIP is compared with itself"
        assert record.clean_evidence.top5_overlap == 1.0
        assert record.run["units"] == parts
        assert record.run["started_ms"] < record.run["ended_ms"]
        assert record.run["provenance"]["packages"]["torch"]
    summary = json.loads((folder / "summary.json").read_bytes())
    assert [row["dataset"] for row in summary["datasets"]] == ["tiny-digits", "real-digits"]
    assert {mean["attack"] for mean in summary["means"]} == {"clean", "pgd-2", "apgd-dlr-4"}


def test_a_table_has_a_row_for_every_image_and_radius_with_every_digit(plain: Path) -> None:
    (folder,) = plain.iterdir()
    lines = gzip.decompress((folder / "records/real-digits/apgd-dlr-4.csv.gz").read_bytes()).decode().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + 2 * 40
    assert [line.split(",")[2] for line in (lines[1], lines[-1])] == ["2/255", "6/255"]


def test_more_workers_another_batch_size_and_a_worker_killed_midway_change_nothing(plain: Path, tmp_path: Path) -> None:
    killed = []

    def kill() -> None:
        """The first worker that is seen measuring."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            for process in psutil.Process().children(recursive=True):
                try:
                    if "EvaluationWorker.measure" in " ".join(process.cmdline()):
                        process.send_signal(signal.SIGKILL)
                        killed.append(process.pid)
                        return
                except psutil.Error:
                    continue
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    result = done(tmp_path, "--workers", "2", "--cpus-per-worker", "1", "--batch-size", "256")
    killer.join()
    assert killed
    assert "a worker is gone" in result.stderr
    assert "another one takes its place" in result.stderr
    assert files(tmp_path) == files(plain)


def test_only_what_is_missing_or_damaged_is_computed_again(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain, out)
    (folder,) = out.iterdir()
    unit = folder / "units/tiny-digits/pgd-2/0001.safetensors"
    data = bytearray(unit.read_bytes())
    data[-5] ^= 1
    unit.write_bytes(data)
    (folder / "units/real-digits/pgd-2/0001.safetensors").unlink()
    (folder / "units/real-digits/apgd-dlr-4/0000.safetensors").write_bytes(
        (folder / "units/tiny-digits/apgd-dlr-4/0000.safetensors").read_bytes()
    )
    (folder / "records/tiny-digits/pgd-2.json").write_text("{")
    (folder / "records/real-digits/pgd-2.csv.gz").unlink()
    untouched = (folder / "units/tiny-digits/pgd-2/0000.safetensors").stat().st_mtime_ns
    result = done(out, "--workers", "1", "--batch-size", "256")
    assert f"{unit}: not a file of verdicts (not the bytes that were written); it is computed again" in result.stderr
    assert "real-digits/apgd-dlr-4/0000.safetensors: of another evaluation, dataset or sample" in result.stderr
    assert "3/3" in result.stderr
    assert files(out) == files(plain)
    assert (folder / "units/tiny-digits/pgd-2/0000.safetensors").stat().st_mtime_ns == untouched
    again = done(out)
    assert "everything is finished already" in again.stderr


def test_a_second_process_is_refused(plain: Path) -> None:
    (folder,) = plain.iterdir()
    with alone_in(Folder(folder)):
        result = agft(plain)
    assert result.exit_code == 2
    assert f"process {os.getpid()} on " in result.stderr
    assert "is evaluating into it" in result.stderr


def test_another_evaluation_in_the_same_folder_is_refused(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    spec = json.loads((folder / "evaluation.json").read_bytes())
    (folder / "evaluation.json").write_text(json.dumps({**spec, "suite": {**spec["suite"], "seed": 5}}))
    result = agft(tmp_path / "out")
    assert result.exit_code == 2
    assert "of another evaluation; move it away" in result.stderr


def test_an_evaluation_in_s3_is_found_there_and_sent_to_mlflow_once(
    plain: Path, service_environment: Services, prefix: str
) -> None:
    (folder,) = plain.iterdir()
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("lock", "owner.json"):
            storage.put_file(path, f"{prefix}/{folder.name}/{path.relative_to(folder)}")
    file = Path(os.environ["AGFT_HOME"]) / "small.yaml"
    file.write_text(SUITE)
    for _ in range(2):
        result = done(prefix, mlflow=True)
        assert "everything is finished already" in result.stderr
        assert f"{prefix}/{folder.name}" in result.stdout
    client = connect(service_environment.mlflow_uri)
    experiment = client.get_experiment_by_name("agft/evaluations")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny-clip on small", "FINISHED")
    record = read_record(folder, "tiny-digits", "pgd-2")
    assert run.data.metrics["robust_accuracy/pgd-2/6_255/tiny-digits"] == record.radii[0].robust.accuracy
    assert run.data.metrics["clean_accuracy/tiny-digits"] == record.clean.accuracy
    assert {"clean_accuracy/mean", "robust_accuracy/apgd-dlr-4/6_255/mean"} <= set(run.data.metrics)
    assert len(client.get_metric_history(run.info.run_id, "clean_accuracy/mean")) == 1
    assert run.data.params["attack.pgd-2"] == "linf 6/255; 540 images a set"
    assert run.data.tags["agft.weights.sha256"] == record.model.weights_sha256
    assert run.data.tags["agft.failed_checks"] == "not checked"
    listed = {item.path for item in client.list_artifacts(run.info.run_id, "records/tiny-digits")}
    assert listed == {"records/tiny-digits/pgd-2.json", "records/tiny-digits/apgd-dlr-4.json"}


def test_metrics_of_an_image_folder_have_names_that_mlflow_takes(plain: Path) -> None:
    (folder,) = plain.iterdir()
    record = read_record(folder, "tiny-digits", "apgd-dlr-4")
    data = record.dataset.model_copy(update={"name": "folder:/data/my päts #1"})
    points = evaluation_projection.metric_points([record.model_copy(update={"dataset": data})], (), 0)
    assert len(points) == 3 + 3  # clean and two radii, and their means
    for point in points:
        assert set(point.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-/"), point.name


def test_an_outage_of_mlflow_costs_a_warning_and_no_result(
    plain: Path, service_environment: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_projection, "CLOSE_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    Path(os.environ["AGFT_HOME"], "small.yaml").write_text(SUITE)
    result = done(plain, mlflow=True)
    assert "warning: MLflow at http://127.0.0.1:9 has not got everything (it does not answer)" in result.stderr
    assert "the same command sends them again" in result.stderr
    assert json.loads(result.stdout)[0]["suite"] == "small"


@pytest.fixture
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_lock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(evaluation_lock, "WATCH_SECONDS", 1.5)
    monkeypatch.setattr(evaluation_lock, "POLL_SECONDS", 0.1)


def test_in_s3_a_living_owner_is_respected_and_a_dead_ones_lease_is_taken(prefix: str, quick_leases: None) -> None:
    place = Prefix(f"{prefix}/evaluation")
    refusal = pytest.raises(UserError, match=f"process {os.getpid()} on .* is evaluating into it")
    with alone_in(place), refusal, alone_in(place):
        pass
    assert storage.head(place.at("lease.json")) is None
    storage.put_bytes(place.at("lease.json"), b'{"host": "gone", "pid": 1}')
    with alone_in(place) as check:
        check()


def test_whoever_lost_its_lease_stops(prefix: str, quick_leases: None) -> None:
    place = Prefix(f"{prefix}/evaluation")
    with alone_in(place) as check:
        storage.put_bytes(place.at("lease.json"), b"{}")
        time.sleep(1.0)
        with pytest.raises(StudyFailed, match="another process has taken over"):
            check()
    assert storage.get_bytes(place.at("lease.json")) is not None, "the heir's lease stays"
