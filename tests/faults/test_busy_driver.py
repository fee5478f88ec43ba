"""On real Ray: a driver that is late changes nothing, and a live study finds what the simulated worlds find."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray

import study.driver.board as board_module
from study.audit.audit import audit
from study.driver.board import ask_board, board_name, open_board
from study.store.archive import stored_of
from study.store.store import StudyStore
from tests.study.driver.test_repeatable import STUDY
from tests.support.light import Plan, drive, light_cluster, light_study
from tests.support.worlds import found, run_world

if TYPE_CHECKING:
    from infra.cluster.cluster import Cluster
    from infra.services import Services


@pytest.fixture(scope="module")
def cluster(stack: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with light_cluster(stack, tmp_path_factory.mktemp("home")) as connected:
        yield connected


def test_a_trial_at_a_rung_waits_for_a_busy_driver_and_trains_no_epoch_meanwhile(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict comes after several of the slices in which the trial asks for it."""
    monkeypatch.setattr(board_module, "RUNG_SLICE_SECONDS", 0.2)
    board, name = open_board("busy-1", 1), board_name("busy-1", 1)
    threading.Timer(1.5, lambda: board.publish.remote(0, 2, "stop")).start()
    start = time.monotonic()
    assert ask_board(name, 0, (2, 4), 2).decision == "stop"
    assert time.monotonic() - start >= 1.4
    assert ask_board(name, 1, (2, 4), 3).decision == "continue", "that is no rung"
    ray.kill(board)
    assert ask_board(name, 1, (2, 4), 4).decision == "pause", "there is no driver"


def assert_no_key_in_rays_files(stack: Services) -> None:
    """In its logs, of which one says the runtime environment of every process."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    secrets = [stack.environment()[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    files = [file for file in logs.rglob("*") if file.is_file()]
    assert any(file.name == "runtime_env_agent.log" for file in files)
    assert [file.name for file in files for each in secrets if each in file.read_text(errors="replace")] == []


def test_a_live_study_finds_what_a_simulated_one_finds(cluster: Cluster, stack: Services, tmp_path: Path) -> None:
    spec = light_study("live", **STUDY)
    store = StudyStore(f"sqlite:///{tmp_path}/live.db", spec.name)
    outcome = drive(spec, Plan(scale=0.1), database=store.url, cluster=cluster, services=stack, say=lambda line: None)
    assert outcome.state == "finished"
    assert_no_key_in_rays_files(stack)
    assert found(store) == run_world(f"sqlite:///{tmp_path}/world.db", spec, seed=1)
    told = audit(stored_of(store))
    assert told.follows, told.line
