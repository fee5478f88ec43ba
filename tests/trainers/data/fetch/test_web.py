"""A file from the web: broken connections, servers of little help, a killed process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services.webserver import Server, serving
from trainers.data.fetch.web import Unreachable, bring

ROOT = Path(__file__).parents[4]
CONTENT = os.urandom(20_500)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("trainers.data.fetch.web.PAUSE_SECONDS", 0.001)
    with serving() as running:
        yield running


def test_a_connection_that_breaks_is_taken_up_at_the_next_byte(server, tmp_path):
    server.files["x.bin"], server.cut = CONTENT, 6000
    bring(f"{server.url}/x.bin", tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert server.asked == [("x.bin", first) for first in (0, 6000, 12000, 18000)]
    assert [each.name for each in tmp_path.iterdir()] == ["x.bin"]


def test_a_server_that_starts_anew_gives_the_file_once(server, tmp_path):
    server.files["x.bin"], server.ranges = CONTENT, False
    (tmp_path / "x.bin.part").write_bytes(b"from another time")
    bring(f"{server.url}/x.bin", tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_is_not_asked_for_again_and_one_that_is_too_long_is_dropped(server, tmp_path):
    server.files["x.bin"] = CONTENT
    for before in (CONTENT, CONTENT + b"more"):
        (tmp_path / "x.bin.part").write_bytes(before)
        bring(f"{server.url}/x.bin", tmp_path / "x.bin")
        assert (tmp_path / "x.bin").read_bytes() == CONTENT
    assert [first for _, first in server.asked] == [20_500, 20_504, 0]


def test_a_server_that_is_busy_is_asked_again_and_one_that_says_no_is_not(server, tmp_path):
    server.files["x.bin"], server.statuses = CONTENT, [503, 429]
    bring(f"{server.url}/x.bin", tmp_path / "x.bin")
    assert len(server.asked) == 3
    with pytest.raises(Unreachable, match=rf"^{server.url}/y\.bin: HTTP 404 Not Found$"):
        bring(f"{server.url}/y.bin", tmp_path / "y.bin")
    assert len(server.asked) == 4
    server.statuses = [500] * 9
    with pytest.raises(Unreachable, match=r"x\.bin: HTTP 500 Internal Server Error$"):
        bring(f"{server.url}/x.bin", tmp_path / "z.bin")
    assert len(server.asked) == 7


GET = """
import sys
from pathlib import Path
from trainers.data.fetch.web import bring
bring(sys.argv[1], Path(sys.argv[2]))
"""


def test_after_a_kill_what_has_arrived_is_not_asked_for_again(server, tmp_path):
    server.files["x.bin"], server.pause = CONTENT * 100, 0.001
    part = tmp_path / "x.bin.part"
    process = subprocess.Popen([sys.executable, "-c", GET, f"{server.url}/x.bin", str(tmp_path / "x.bin")], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not part.exists() or part.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    server.pause, have = 0, part.stat().st_size
    bring(f"{server.url}/x.bin", tmp_path / "x.bin")
    assert (tmp_path / "x.bin").read_bytes() == CONTENT * 100
    assert server.asked[1] == ("x.bin", have)
    assert 0 < have < len(CONTENT) * 100


def test_how_far_it_is_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.data.progress.QUIET_SECONDS", 0.0)
    monkeypatch.setattr("trainers.data.fetch.web.CHUNK_BYTES", 1000)
    server.files["x.bin"] = CONTENT
    said: list[str] = []
    bring(f"{server.url}/x.bin", tmp_path / "x.bin", say=said.append)
    assert re.fullmatch(r"x\.bin: 0\.00 of 0\.00 GB, [\d,.]+ MB a second, about 0 s left", said[-1])
