"""Ray that does not come up on this machine: tried again, and in the end one line that names the file with the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cluster.cluster import TOKEN_FILE, cluster_environment

CONNECT = """
import sys
from infra.cluster import cluster
from infra.errors import ServiceError
try:
    print("UP", cluster.connect(num_cpus=1).local)
except ServiceError as error:
    print("SAID", error)
cluster.disconnect()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where Ray is to put its files; a file stands there instead."""
    folder = Path(tempfile.mkdtemp(prefix="agft-s-", dir="/tmp"))  # short: socket names hold 107 characters
    (folder / f"agft-{os.getuid()}").mkdir(mode=0o700)
    yield folder
    shutil.rmtree(folder)


def connecting(folder: Path) -> subprocess.Popen[str]:
    (folder / f"agft-{os.getuid()}" / "ray").write_text("in the way")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", CONNECT], env={**kept, "TMPDIR": str(folder), "AGFT_HOME": str(folder / "home")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_ray_that_never_starts_is_one_line_after_four_tries(folder):
    said, errors = connecting(folder).communicate(timeout=300)
    assert errors.count("Ray did not start") == 3
    assert "Traceback" not in errors
    assert said.count("\n") == 1
    cores = f"on {os.cpu_count()} cores and "
    assert said.startswith("SAID Ray does not start on this machine, which has a load of ")
    assert cores in said.partition(": ")[0]
    [told] = (folder / "home" / "logs").glob("ray-*.log")
    assert str(told) in said
    assert told.stat().st_mode & 0o777 == 0o600
    assert "Traceback" in told.read_text()


@pytest.mark.slow
def test_a_ray_that_starts_at_the_third_try_is_used(folder):
    process = connecting(folder)
    assert process.stderr is not None
    for _ in range(2):
        assert "trying again" in process.stderr.readline()
    (folder / f"agft-{os.getuid()}" / "ray").unlink()
    said, errors = process.communicate(timeout=300)
    assert said == "UP True\n", errors


def test_variables_that_ray_refuses_are_dropped_before_its_libraries_read_them(tmp_path: Path) -> None:
    code = "import os; from infra.cluster import cluster; print({*cluster.REFUSED} & {*os.environ}, cluster._ignored)"
    refused = {"RAY_TRAIN_V2_ENABLED": "0", "TUNE_RESULT_DIR": str(tmp_path), "AGFT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **refused}, capture_output=True, text=True)
    assert done.stdout == f"set() ['RAY_TRAIN_V2_ENABLED=0', 'TUNE_RESULT_DIR={tmp_path}']\n"


def test_nodes_and_terminals_are_given_one_token_which_is_kept_with_mode_0600(tmp_path: Path) -> None:
    first, again = cluster_environment(tmp_path), cluster_environment(tmp_path)
    assert first == again
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
