"""Preparing a dataset: what a kill, Ctrl-C, a second process, a full disk and damaged images leave."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.prepared import MANY, contents, textures
from trainers.data.prepared.prepare import prepare
from trainers.data.prepared.shards import MANIFEST, read_manifest
from trainers.errors import UserError

ROOT = Path(__file__).parents[4]


def test_several_processes_write_the_same_bytes(many, whole, tmp_path):
    entry, root = many
    said: list[str] = []
    prepare(entry, root, tmp_path, workers=2, say=said.append)
    assert contents(tmp_path / "dtd") == contents(whole)
    assert said[-1].startswith("dtd: prepared 300 images of 2 classes in")
    prepare(entry, root, tmp_path, workers=2, say=said.append)
    assert said[-1].startswith("dtd: prepared already")


START = """
import sys
from pathlib import Path
from tests.support.miniatures import row
from trainers.data.prepared.prepare import prepare
root, place, number, workers = sys.argv[1:]
prepare(row("dtd", int(number), 2), Path(root), Path(place), workers=int(workers), say=lambda t: print(t, flush=True))
"""


def start(root: Path, place: Path, number: int = MANY, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, str(root), str(place), str(number), str(workers)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_kill_the_same_command_goes_on_and_no_image_is_lost_or_doubled(workers, many, whole, tmp_path):
    entry, root = many
    process = start(root, tmp_path, workers=workers)
    wait_for(tmp_path / "dtd/images-00000.json", process)
    process.kill()
    process.wait()
    folder = tmp_path / "dtd"
    assert not (folder / MANIFEST).exists()
    kept = (folder / "images-00000.npy").stat().st_mtime_ns
    (folder / "images-00001.npy").write_bytes(b"half")  # as a machine might leave it that lost its power
    (folder / "images-00002.npy.abcd.tmp").write_bytes(b"half")
    said: list[str] = []
    prepare(entry, root, tmp_path, workers=1, say=said.append)
    assert "images were ready from an earlier run" in said[-2]
    assert contents(folder) == contents(whole)
    assert (folder / "images-00000.npy").stat().st_mtime_ns == kept


INTERRUPTED = """
import sys
import trainers.data
from tests.support.miniatures import row
from study.cli.main import main
trainers.data.DATASETS = {"dtd": row("dtd", int(sys.argv[1]), 2)}
main(["data", "prepare", "dtd", "--workers", "2"])
"""


def test_ctrl_c_ends_it_with_one_line_and_the_command_goes_on(many, whole, tmp_path):
    _, root = many
    command = [sys.executable, "-c", INTERRUPTED, str(MANY)]
    for attempt in range(5):  # on a busy machine it may be done before the signal is sent
        place = tmp_path / str(attempt)
        environment = {**os.environ, "AGFT_DATA": str(root), "AGFT_PREPARED": str(place)}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_for(place / "dtd", process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and to its workers
        _, error = process.communicate(timeout=120)
        if process.returncode != 0:
            break
    assert process.returncode == 1
    assert "failed: dtd: interrupted; what is finished is kept, the same command goes on" in error
    assert "Traceback" not in error
    assert not list((place / "dtd").glob("*.tmp"))
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    assert contents(place / "dtd") == contents(whole)


def test_a_killed_parents_workers_end_with_it(many, tmp_path):
    _, root = many
    process = start(root, tmp_path, workers=2)
    wait_for(tmp_path / "dtd", process)
    deadline = time.monotonic() + 60
    while len(members := group(process.pid)) < 3 and not (tmp_path / "dtd" / MANIFEST).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(members) >= 2
    while group(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_what_changed_between_two_runs_is_not_mixed(many, whole, tmp_path):
    entry, root = many
    folder = tmp_path / "dtd"
    prepare(entry, root, tmp_path, workers=1)
    manifest = read_manifest(folder / MANIFEST)
    assert manifest is not None
    note = {"plan": "of other files", "sha256": manifest.shards[0].sha256, "digests": "00" * 32 * 111}
    (folder / MANIFEST).unlink()
    (folder / "images-00000.json").write_text(json.dumps(note))
    said: list[str] = []
    prepare(entry, root, tmp_path, workers=1, say=said.append)
    assert not any("earlier run" in line for line in said)
    assert contents(folder) == contents(whole)


def test_of_two_processes_one_works_and_the_other_finds_it_done(many, whole, tmp_path):
    _, root = many
    first = start(root, tmp_path)
    wait_for(tmp_path / "dtd", first)
    second = start(root, tmp_path)
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert "prepared 300 images" in outputs[0]
    assert "another process prepares dtd; waiting for it" in outputs[1]
    assert "prepared already" in outputs[1]
    assert contents(tmp_path / "dtd") == contents(whole)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond `size`, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_leaves_nothing_half_and_the_next_run_goes_on(many, whole, tmp_path):
    entry, root = many
    with largest_file(15 << 20), pytest.raises(OSError, match="large"):  # the first two parts need 16 MiB, the last 11
        prepare(entry, root, tmp_path, workers=1)
    assert [file.name for file in (tmp_path / "dtd").iterdir()] == []
    prepare(entry, root, tmp_path, workers=1)
    assert contents(tmp_path / "dtd") == contents(whole)


def test_a_corrupt_image_is_named_and_nothing_is_taken_for_complete(tmp_path):
    entry = textures(tmp_path, 4)
    broken = tmp_path / "dtd/dtd/images/banded/0002.png"
    good = broken.read_bytes()
    for content, reason in ((good[:70], "truncated"), (b"no picture", "no picture"), (b"", "it is empty")):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=rf"0002\.png: not a readable image \(.*{reason}"):
            prepare(entry, tmp_path, tmp_path / "out", workers=1)
        assert list((tmp_path / "out/dtd").iterdir()) == []
    broken.write_bytes(good)
    prepare(entry, tmp_path, tmp_path / "out", workers=1)


def test_a_corrupt_image_stops_all_processes(many, tmp_path):
    entry = textures(tmp_path, MANY)
    (tmp_path / "dtd/dtd/images/banded/0200.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0200\.png: not a readable image"):
        prepare(entry, tmp_path, tmp_path / "out", workers=2)
    assert not (tmp_path / "out/dtd" / MANIFEST).exists()


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    entry = textures(tmp_path, 5)
    for number in (2, 4):
        (tmp_path / f"dtd/dtd/images/banded/{number:04d}.png").unlink()
    with pytest.raises(UserError, match=r"^dtd: .*banded/0002\.png: no such file; 2 of 5 images are missing"):
        prepare(entry, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/dtd").exists()
