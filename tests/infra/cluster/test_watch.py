"""A process that hangs while its Ray cluster is lost: it is made to leave. The head is Ray's own server, alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from infra.stack import processes

GCS = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
WATCHED = """
import os, signal, sys, time
from infra.cluster import watch
watch.ASK_SECONDS, watch.ANSWER_SECONDS, watch.SILENCE_SECONDS, watch.LEAVE_SECONDS = 0.2, 1.0, 1.0, 1.0
{first}
ask = watch._asker({address!r})
assert ask() == set()
watch._asker = lambda address: ask  # a connection that was made while the head lived
print("connected", flush=True)
sys.stdin.readline()
watch.start({address!r}, "0" * 56)
with watch.left_when_lost(lambda reason: print("OUTER", reason, flush=True)):
    with watch.left_when_lost(lambda reason: print("INNER", reason, flush=True)):
        try:
            {then}
        except KeyboardInterrupt:
            print("INTERRUPTED", watch.lost(), flush=True)
"""
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN)"  # as deep in a call that never looks at signals


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A head without a node, and its address."""
    [port] = processes.free_ports(1)
    command = [GCS, f"--log_dir={tmp_path}", f"--gcs_server_port={port}", "--node-ip-address=127.0.0.1",
               "--session-name=alone", "--ray-commit=none"]  # fmt: skip
    with (tmp_path / "gcs.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "RAY_AUTH_MODE": "disabled"})
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def watched(address: str, first: str = "", then: str = "time.sleep(600)") -> subprocess.Popen[str]:
    """Connected; it waits to be watched until it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED.format(address=address, first=first, then=then)], text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


def test_a_head_that_is_killed_interrupts_whoever_waits(head):
    server, address = head
    process = watched(address)
    server.kill()
    said, _ = process.communicate("\n", timeout=60)
    assert said == f"INTERRUPTED the head of the Ray cluster at {address} has not answered for 1 s\n"


def test_whoever_cannot_be_interrupted_is_ended_after_a_last_word(head):
    _, address = head
    process = watched(address, first=DEAF)
    said, _ = process.communicate("\n", timeout=60)
    reason = f"the Ray node that this process is on has died (cluster {address})"
    assert said.splitlines() == [f"OUTER {reason}", f"INNER {reason}"]
    assert process.returncode == 1


def test_a_cluster_that_we_leave_is_not_lost_however_long_its_nodes_take(head):
    _, address = head
    slow = "import ray\nray.shutdown = lambda: time.sleep(2.0)"  # longer than until the watch asks
    process = watched(address, first=f"{slow}\nfrom infra.cluster import cluster", then="cluster.disconnect()")
    said, _ = process.communicate("\n", timeout=60)
    assert (said, process.returncode) == ("", 0)
