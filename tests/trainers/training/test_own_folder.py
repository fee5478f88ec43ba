"""A worker's folder goes with its process, however that ends: the next worker removes what a killed one left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trainers.worker import own_folder

HOLD = """
from trainers.worker import own_folder
with own_folder() as folder:
    (folder / "latest.safetensors").write_bytes(bytes(1000))
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_worker_left_goes_and_what_a_living_one_has_stays(temporary: Path) -> None:
    held = []
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert child.stdout is not None
        held.append((child, Path(child.stdout.readline().strip())))
    (killed, left), (living, kept) = held
    assert left.is_dir()
    assert kept.is_dir()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (temporary / "agft-trial-link").symlink_to(elsewhere)
    with own_folder() as own:
        assert own.is_dir()
        assert not left.exists()
        assert (kept / "latest.safetensors").exists()
        assert (elsewhere / "file").exists(), "a link is nobody's folder"
    assert not own.exists()
    living.communicate("\n")
    assert sorted(each.name for each in temporary.iterdir()) == ["agft-trial-link", "elsewhere"]
