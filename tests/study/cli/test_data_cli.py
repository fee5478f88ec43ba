"""`agft data` and what studies say of datasets: exit codes, messages, tables."""

from __future__ import annotations

import json
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from study.cli.main import main
from tests.support.miniatures import MINIATURES, row
from tests.support.study_files import minimal
from trainers import data
from trainers.data.drawn.datasets import TINY_DATASETS
from trainers.data.table import FILE_DATASETS, ZERO_SHOT_15
from trainers.table import Table

ROOT = Path(__file__).parents[3]


def agft(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with three miniatures, and a table that knows how small they are."""
    rows = {}
    for name in ("eurosat", "dtd", "cifar10"):
        make, images, classes = MINIATURES[name]
        make(tmp_path)
        rows[name] = row(name, images, classes)
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AGFT_PREPARED", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    known(monkeypatch, {**data.DATASETS, **rows})
    return tmp_path


def known(monkeypatch, rows):
    """The table of datasets with these rows, for everybody who asks it here."""
    table = Table("dataset", "agft.datasets", rows)
    for module in ("trainers.data", "study.artifacts.datasets", "study.spec.outside"):
        monkeypatch.setattr(f"{module}.DATASETS", table)


def test_list_shows_every_set_and_whether_it_is_here(home):
    assert agft("data", "prepare", "dtd").exit_code == 0
    rows = {each["name"]: each for each in json.loads(agft("data", "list", "--json").stdout)}
    assert set(rows) == set(data.DATASETS)
    states = {name: rows[name]["state"] for name in ("tiny-shapes", "dtd", "eurosat", "sun397")}
    assert states == {"tiny-shapes": "built in", "dtd": "prepared", "eurosat": "files here", "sun397": "missing"}
    assert tuple(rows)[:15] == ZERO_SHOT_15
    drawn = {name for name, each in rows.items() if each["group"] == "drawn"}
    assert set(TINY_DATASETS) <= drawn  # other tests add small sets of their own
    assert not drawn & set(data.FILE_DATASETS)
    assert rows["imagenet"]["prepared_bytes"] == 50_000 * 150_528
    assert rows["tiny-shapes"]["prepared_bytes"] is None
    assert [rows[name]["kind"] for name in ("pcam", "imagenet", "tiny-shapes")] == ["download", "by hand", "drawn"]
    assert rows["imagenet"]["images"] == 50_000
    assert rows["food101"]["templates"] == ["A photo of {}, a type of food."]
    table = agft("data", "list").stdout
    for name, entry in FILE_DATASETS.items():
        assert name in table
        assert entry.source.split()[0][:30] in table
    assert f"files, AGFT_DATA: {home}\nprepared sets, AGFT_PREPARED: {home}/prepared\n" in table


def test_on_a_narrow_terminal_names_numbers_and_states_stay_whole(home, monkeypatch):
    monkeypatch.setattr("study.console.wide_console", lambda: Console(width=80, highlight=False, file=sys.stdout))
    table = agft("data", "list").stdout
    assert "https" not in table
    for name, entry in data.DATASETS.items():
        (line,) = [each for each in table.splitlines() if each.split()[:1] == [name]]
        assert f"{entry.num_images:,}" in line.split()
        assert line.rstrip().endswith(entry.kind)


def test_prepare_then_verify_then_damage(home):
    result = agft("data", "prepare", "eurosat", "dtd", "--workers", "1")
    assert result.exit_code == 0
    assert result.stdout == f"eurosat: ready in {home}/prepared/eurosat\ndtd: ready in {home}/prepared/dtd\n"
    assert agft("data", "verify", "eurosat", "dtd").stdout == (
        "eurosat: 20 images, 10 classes, as they should be\ndtd: 3 images, 2 classes, as they should be\n"
    )
    assert "prepared already" in agft("data", "prepare", "dtd").stderr
    (home / "prepared/dtd/labels.npy").write_bytes(b"x")
    result = agft("data", "verify", "eurosat", "dtd")
    assert result.exit_code == 1
    assert result.stdout.startswith("eurosat: 20 images")
    assert re.fullmatch(rf"{home}/prepared/dtd/labels\.npy: its SHA-256 is \w+, not \w+\n", result.stderr)


def test_to_another_folder_it_says_how_to_use_it(home):
    result = agft("data", "prepare", "dtd", "--to", str(home / "elsewhere"))
    assert result.stdout.splitlines()[-1] == f"to use them there: export AGFT_PREPARED={home}/elsewhere"
    assert (home / "elsewhere/dtd/manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("prepare", "imagnet"), 2, "NAME: 'imagnet' is not known; did you mean 'imagenet'? known: "),
        (("prepare", "tiny-shapes"), 2, "tiny-shapes: is drawn when it is used; there is nothing to prepare"),
        (("prepare", "food101"), 2, "food-101/meta: not there. To get it:\n  agft data prepare food101 --download"),
        (("prepare", "folder:/no/where"), 2, "NAME: 'folder:/no/where': no such folder"),
        (("prepare", "imagenet"), 2, "ILSVRC2012_devkit_t12.tar.gz into"),
        (("prepare", "stanford-cars", "--download"), 2, "withlabels.mat: not there. To get it:\n  (Stanford's own"),
        (("prepare", "imagenet", "--download"), 2, "imagenet/val: not there. To get it:\n  1. register at https://"),
        (("prepare", "dtd", "--to", "ftp://x/y"), 2, "--to: ftp://x/y: neither a folder nor an s3:// address"),
        (("verify", "sun397"), 1, "sun397/manifest.json: not there; sun397 is not prepared"),
    ],
)
def test_messages(arguments, code, message, home):
    result = agft("data", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "{root}" not in result.stderr


def test_steps_to_do_by_hand_name_the_folder_and_nothing_is_left_to_fill_in():
    for entry in FILE_DATASETS.values():
        assert entry.files is not None
        for line in entry.files.by_hand:
            assert set(re.findall(r"{(\w*)}", line)) <= {"root"}, line
        if entry.files.by_hand:
            assert any("{root}" in line for line in entry.files.by_hand)


def test_what_is_wrong_with_the_files_is_one_line_and_exit_2(home):
    (home / "eurosat/2750/River/River_0.jpg").write_bytes(b"no picture")
    result = agft("data", "prepare", "eurosat")
    assert result.exit_code == 2
    why = "not a readable image (no picture, or of no format that is read here)"
    assert f"{home}/eurosat/2750/River/River_0.jpg: {why}" in result.stderr
    (home / "dtd/dtd/labels/test1.txt").write_text("banded/banded_0002.jpg\n")
    result = agft("data", "prepare", "dtd")
    assert result.exit_code == 2
    assert "1 images, where dtd (test, partition 1) has 3; an unfinished download" in result.stderr


def test_a_disk_that_cannot_be_written_is_exit_1(home, monkeypatch):
    (home / "occupied").write_text("a file, where a folder should be")
    result = agft("data", "prepare", "dtd", "--to", str(home / "occupied"))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"failed: dtd: {home}/occupied")


STUDY = minimal(
    name="sets", train="{epochs: 1}", goal="{metric: robust_accuracy}", budget="{trials: 2}",
    data="{train: tiny-color-shapes, dev: [DEV, tiny-digits], confirm: [tiny-colors], final: [food101]}",
)  # fmt: skip


def test_a_study_on_a_set_that_is_not_prepared_is_planned_and_refused_before_anything_starts(home):
    file = home / "study.yaml"
    file.write_text(STUDY.replace("DEV", "imagenet"))
    assert agft("validate", str(file)).exit_code == 0
    missing = [
        f"data.dev.0: 'imagenet' is not prepared (looked in {home}/prepared); run: agft data prepare imagenet",
        f"data.final.0: 'food101' is not prepared (looked in {home}/prepared); run: agft data prepare food101",
    ]
    planned = agft("plan", str(file))
    assert planned.exit_code == 0
    assert all(line in planned.stdout for line in missing)
    before = sorted(home.rglob("*"))
    result = agft("run", str(file))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == missing
    assert sorted(home.rglob("*")) == before


def test_a_misspelt_set_is_named_with_the_nearest(home):
    file = home / "study.yaml"
    file.write_text(STUDY.replace("DEV", "flowers-102"))
    result = agft("validate", str(file))
    assert result.exit_code == 2
    assert "data.dev.0 = 'flowers-102': no such dataset; did you mean 'flowers102'?" in result.stderr


def test_without_a_network_a_download_fails_in_one_message(home, monkeypatch):
    monkeypatch.setattr("trainers.data.fetch.web.PAUSE_SECONDS", 0.001)
    rows = dict(data.DATASETS)
    entry = rows["food101"]
    assert entry.files is not None
    (archive,) = entry.files.archives
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/{archive.file}"
        rows["food101"] = replace(entry, files=replace(entry.files, archives=(replace(archive, url=url),)))
        known(monkeypatch, rows)
        result = agft("data", "prepare", "food101", "--download")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"food101: downloading {url} ...",
        f"failed: food101: cannot get {url}: [Errno 111] Connection refused. "
        f"By other means: put food-101.tar.gz into {home}, then run the same command",
    ]


def test_all_sets_that_cannot_be_had_are_named_before_any_is_prepared(home):
    result = agft("data", "prepare", "dtd", "imagenet", "sun397")
    assert result.exit_code == 2
    assert "imagenet/val: not there" in result.stderr
    assert "SUN397/ClassName.txt: not there" in result.stderr
    assert not (home / "prepared").exists()


def test_a_folder_of_images_is_prepared_like_any_set(home):
    name = f"folder:{home}/eurosat/2750"
    result = agft("data", "prepare", name)
    assert result.exit_code == 0
    folder = home / "prepared" / data.safe_name(name)
    assert result.stdout == f"{name}: ready in {folder}\n"
    assert (folder / "manifest.json").is_file()
    assert agft("data", "verify", name).stdout == f"{name}: 20 images, 10 classes, as they should be\n"
    (home / "eurosat/2750/River/River_0.jpg").unlink()
    assert "number of images is 20, not 19" in agft("data", "verify", name).stderr


def test_a_prepared_set_without_a_file_is_not_sent_to_s3_half(home, monkeypatch):
    monkeypatch.setattr("infra.storage.head", lambda uri: None)
    monkeypatch.setattr("study.artifacts.datasets.reach_storage", lambda *_: None)
    assert agft("data", "prepare", "dtd").exit_code == 0
    (home / "prepared/dtd/labels.npy").unlink()
    result = agft("data", "prepare", "dtd", "--to", "s3://bucket/sets")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"failed: dtd: {home}/prepared/dtd/labels.npy: No such file")
