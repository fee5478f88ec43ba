"""Trials that wait bring nodes: a real head with Ray's autoscaler, whose nodes are processes on the same host."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from study.driver.admission import SILENCE_SECONDS, WANT_SECONDS, Ledger, Slot
from tests.support.services import hosts
from tests.support.services.compose import ROOT

HEAD = "f" * 51 + "00000"  # the fake provider knows its head by it
CONFIG: dict[str, Any] = {
    "cluster_name": "fake",
    "provider": {"type": "external", "launch_multiple": True,
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": HEAD},
    "max_workers": 3,
    "idle_timeout_minutes": 0.1,
    "auth": {}, "docker": {}, "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
    "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts": {},
    "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 1, "max_workers": 3},
    },
}  # fmt: skip
STUDY = """
import json, time, ray
ray.init(address="auto", log_to_driver=False)
from study.driver.admission import open_admission
actor = open_admission()

def ask(trial):
    return ray.get(actor.ask.remote("driver", trial, {"CPU": 1.0}, {"CPU": 1.0}))

def workers():
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())

def until(found, seconds=60):
    end = time.monotonic() + seconds
    while not found() and time.monotonic() < end:
        time.sleep(0.5)
    return found()

said = {"first node": until(lambda: workers() == 1)}
said["first trial"] = until(lambda: ask("0"))
said["second trial at once"] = ask("1")
said["second trial when a node has come"] = until(lambda: ask("1"))
said["nodes"] = workers()
ray.get(actor.leave.remote("driver"))
said["a node goes when nothing is wanted"] = until(lambda: workers() == 1)
print(json.dumps(said))
"""


def test_what_is_held_and_what_waits_is_wanted_and_nothing_of_drivers_that_are_gone():
    ledger, nodes = Ledger(), [{"GPU": 1.0}]
    assert ledger.demand(0.0) == []
    assert ledger.ask("one", "0", Slot({"GPU": 1.0}), nodes, 0.0)
    assert not ledger.ask("two", "0", Slot({"GPU": 2.0, "CPU": 8.0}, workers=2), nodes, 0.0)
    assert ledger.demand(1.0) == [{"GPU": 1.0}, *[{"GPU": 1.0, "CPU": 4.0}] * 2]
    assert ledger.demand(WANT_SECONDS + 1) == [{"GPU": 1.0}], "it does not ask any more"
    assert ledger.demand(SILENCE_SECONDS + 1) == []
    ledger.heartbeat("one", SILENCE_SECONDS + 1)
    assert ledger.demand(SILENCE_SECONDS + 2) == [{"GPU": 1.0}]
    ledger.give_back("one", "0")
    assert ledger.demand(SILENCE_SECONDS + 2) == []


@pytest.fixture
def head() -> Iterator[tuple[hosts.Hosts, dict[str, str]]]:
    """A head with an autoscaler, on a host of its own; and the environment of a driver there."""
    if reason := hosts.why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="agft-a-", dir="/tmp"))
    (folder / "cluster.yaml").write_text(json.dumps(CONFIG))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(folder),
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_TMPDIR": str(folder),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD, "AGFT_AUTOSCALE": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }  # fmt: skip
    try:
        with hosts.hosts(["head"]) as network:
            start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus", "0",
                     "--num-gpus", "0", "--autoscaling-config", str(folder / "cluster.yaml"), "--disable-usage-stats",
                     "--object-store-memory", str(100 << 20), "--temp-dir", str(folder / "ray")]  # fmt: skip
            done = subprocess.run(network.command("head", start), env=environment, capture_output=True, text=True,
                                  check=False, timeout=120)  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            yield network, environment
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_trial_that_waits_brings_a_node_which_goes_when_nothing_is_wanted(head):
    network, environment = head
    done = subprocess.run(network.command("head", [sys.executable, "-c", STUDY]), env=environment, capture_output=True,
                          text=True, check=False, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said == {
        "first node": True, "first trial": True, "second trial at once": False,
        "second trial when a node has come": True, "nodes": 2, "a node goes when nothing is wanted": True,
    }  # fmt: skip
