"""A driver's output, copied to real S3 while it is written, and read by another terminal."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

import pytest

from infra import storage
from infra.cluster import raw_output
from study.control import logs as follow
from study.control import logs as log_copy
from study.control.logs import ENDED, copied_output, follow_logs, print_logs
from study.errors import StudyFailed
from study.store.lease import owner_identity
from study.store.store import StudyStore
from tests.support.studies import synthetic_study


@pytest.fixture
def store(tmp_path, service_environment) -> StudyStore:
    store = synthetic_study(tmp_path, name=tmp_path.name, trials=2, finished=True)  # a place in S3 of its own
    store.acquire(owner_identity())
    return store


def written(store: StudyStore, bucket: str) -> str:
    parts: list[str] = []
    print_logs(store, bucket, parts.append)
    return "".join(parts)


def test_what_is_printed_is_shown_kept_in_a_file_and_copied(store, service_environment, tmp_path, capsys):
    bucket = service_environment.bucket
    with copied_output(tmp_path / "logs", bucket=bucket, store=store):
        print("epoch 1 – über")
        print("careful", file=sys.stderr)
        logging.getLogger("agft").warning("the log's own words")
    print("afterwards")
    shown = capsys.readouterr()
    assert "epoch 1 – über" in shown.out
    assert "careful" in shown.err
    [path] = (tmp_path / "logs").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    text = written(store, bucket)
    assert text == path.read_text()
    assert "epoch 1 – über\ncareful\n" in text
    assert text.rstrip().endswith(ENDED)
    assert "afterwards" not in text
    token = store.load().token
    assert storage.head(f"s3://{bucket}/studies/{store.load().slug}/logs/a{token:06d}.log") is not None


def test_an_error_that_ends_the_driver_is_in_its_log(store, service_environment, tmp_path):
    bucket = service_environment.bucket
    with (
        pytest.raises(StudyFailed),
        copied_output(tmp_path / "logs", bucket=bucket, store=store),
    ):
        raise StudyFailed("the cluster is gone")
    assert "failed: the cluster is gone" in written(store, bucket)
    with pytest.raises(ZeroDivisionError), copied_output(tmp_path / "logs", bucket=bucket, store=store):
        print(1 // 0)
    assert "ZeroDivisionError" in written(store, bucket)


def test_a_full_disk_ends_no_study_because_of_what_is_printed(
    store, service_environment, tmp_path, monkeypatch, capsys
):
    """Neither what is printed nor the error that ends the driver meanwhile is lost to the terminal."""
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115  # the driver closes it
    monkeypatch.setattr(log_copy._Log, "__init__", lambda log, path: setattr(log, "file", full))

    def drive() -> None:
        with copied_output(tmp_path / "logs", bucket=service_environment.bucket, store=store):
            for epoch in range(3):
                print("epoch", epoch)
            raise StudyFailed("the cluster is gone")

    with pytest.raises(StudyFailed, match="the cluster is gone"):
        drive()
    assert full.closed
    assert capsys.readouterr().out == "epoch 0\nepoch 1\nepoch 2\n"
    monkeypatch.setattr(raw_output, "raw_log", lambda: Path("/dev/full"))
    assert raw_output.note("a dump") == Path("/dev/full")


def test_a_process_that_does_not_drive_copies_nothing(store, service_environment, tmp_path):
    store.release(store.load().token, "paused")
    store.acquire("elsewhere|1|1.00|m.b.1")
    with copied_output(tmp_path / "logs", bucket=service_environment.bucket, store=store):
        print("hello")
    assert written(store, service_environment.bucket) == ""


def test_storage_that_fails_is_one_warning_and_no_more(store, service_environment, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(log_copy, "COPY_SECONDS", 0.1)
    monkeypatch.setattr(log_copy, "LOOK_SECONDS", 0.1)
    with copied_output(tmp_path / "logs", bucket=service_environment.bucket, store=store):
        for number in range(5):
            print(number)
            time.sleep(0.2)
    assert caplog.text.count("could not be copied") == 1


def test_following_shows_lines_as_they_come_and_ends_with_the_driver(store, service_environment, tmp_path, monkeypatch):
    bucket = service_environment.bucket
    monkeypatch.setattr(log_copy, "COPY_SECONDS", 0.2)
    monkeypatch.setattr(log_copy, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.2)
    with copied_output(tmp_path / "logs", bucket=bucket, store=store):
        print("an earlier driver")
    store.release(store.load().token, "paused")
    token = store.acquire(owner_identity())
    parts: list[tuple[float, str]] = []
    states: list[str] = []
    reader = StudyStore(store.url, store.name)
    thread = threading.Thread(
        target=lambda: states.append(follow_logs(reader, bucket, lambda text: parts.append((time.monotonic(), text))))
    )
    with copied_output(tmp_path / "logs", bucket=bucket, store=store):
        thread.start()
        print("first line")
        time.sleep(2)
        halfway = time.monotonic()
        print("second line")
        store.release(token, "finished")
        time.sleep(1)
        assert thread.is_alive(), "the driver lets go of the study before it prints its table"
        print("last line")
    thread.join(20)
    assert states == ["finished"]
    text = "".join(part for _, part in parts)
    assert [text.count(line) for line in ("an earlier driver", "first line", "second line", "last line")] == [1] * 4
    assert text.index("earlier") < text.index("first") < text.index("second") < text.index("last")
    assert any("first line" in part and when < halfway for when, part in parts), "before the second was printed"
