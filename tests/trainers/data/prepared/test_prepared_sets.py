"""A prepared set is the same data: training and evaluation give the same bits; and its way through S3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from study.cli.main import main
from tests.support.miniatures import MINIATURES, row
from tests.support.small import SMALL_SETS, datasets_with, image_set, pgd_suite, small_clip, small_sets, trial
from trainers import data
from trainers.data.base import DatasetEntry, Files, RawSet
from trainers.data.prepared.prepare import prepare
from trainers.data.prepared.shards import ShardedImages
from trainers.data.stored import load_stored
from trainers.model.weights import save_weights
from trainers.schema.records import Decision
from trainers.schema.training import OptimizerConfig, TrainConfig
from trainers.training.loop import train

NAMES = ("small-train", "small-dev")
ROOT = Path(__file__).parents[4]


def stored_row(name: str) -> DatasetEntry:
    """A small drawn set as one that is read from files."""
    number, seed = SMALL_SETS[name]
    drawn = image_set(name, number, seed=seed)
    pixels = np.ascontiguousarray(drawn.images[:].numpy().transpose(0, 2, 3, 1))
    raw = RawSet(pixels, drawn.labels.tolist(), drawn.classes)
    files = Files(lambda root: raw, "anything", 16)
    return DatasetEntry(name, None, number, 4, "drawn", "", templates=drawn.templates, files=files)


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files even for a small set, so that a batch is gathered from all of them."""
    monkeypatch.setattr("trainers.data.prepared.prepare.shard_size", lambda *_: 13)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_parts(monkeypatch)
    for name in NAMES:
        prepare(stored_row(name), tmp_path, tmp_path / "prepared")
    monkeypatch.setenv("AGFT_PREPARED", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


@contextmanager
def used(*, prepared: bool) -> Iterator[None]:
    """The small sets, drawn or from the files of AGFT_PREPARED."""
    with small_sets(), pytest.MonkeyPatch.context() as patch:
        if prepared:
            patch.setattr(data, "DATASETS", datasets_with({name: stored_row(name) for name in NAMES}))
        patch.setattr(data, "_LOADED", {})
        yield


def run(workdir: Path, weights: Path, *, cached: bool = False) -> tuple[dict[str, torch.Tensor], list[Any]]:
    from safetensors.torch import load_file

    settings = TrainConfig(
        epochs=2, batch_size=40, optimizer=OptimizerConfig(lr=3e-3), threads=1, accumulation=2, teacher_cache=cached
    )
    config = trial(weights, train=settings, evaluate=pgd_suite("small-dev", eps=("2/255", "8/255"), steps=2))
    result = train(config, report=lambda _: Decision.CONTINUE, workdir=workdir)
    found = [(each.train_loss, each.clean_accuracy, each.robust_accuracy) for each in result.history]
    return load_file(workdir / "latest.safetensors"), found


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(autouse=True)
def _sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOADED", {})


@pytest.mark.parametrize("cached", [False, True], ids=["teacher computed", "teacher kept"])
def test_training_and_evaluation_give_the_same_bits(cached, place, tmp_path, monkeypatch):
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    weights = save_weights(tmp_path / "start.safetensors", small_clip())
    found = {}
    for prepared in (False, True):
        workdir = tmp_path / f"run-{prepared}"
        workdir.mkdir()
        with used(prepared=prepared):
            assert isinstance(data.load_dataset("small-train").images, ShardedImages) == prepared
            found[prepared] = run(workdir, weights, cached=cached)
    assert same(found[True][0], found[False][0])
    assert found[True][1] == found[False][1]


def test_a_set_goes_to_s3_and_comes_back_as_it_was(prefix, tmp_path, monkeypatch):
    """`agft data prepare --to s3://...`, `verify` there, and a load that fetches only what it needs."""
    from infra import storage
    from study.artifacts.sources import use_s3_data

    make, images, classes = MINIATURES["eurosat"]
    make(tmp_path)
    entry = row("eurosat", images, classes)
    small_parts(monkeypatch)
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    for module in ("trainers.data", "study.artifacts.datasets"):
        monkeypatch.setattr(f"{module}.DATASETS", datasets_with({"eurosat": entry}))
    sent: list[str] = []
    put = storage.put_file
    monkeypatch.setattr(storage, "put_file", lambda path, uri, **k: sent.append(path.name) or put(path, uri, **k))
    for _ in range(2):
        result = CliRunner().invoke(main, ["data", "prepare", "eurosat", "--to", prefix])
        assert result.exit_code == 0, result.stderr
        assert result.stdout.splitlines()[-1] == f"to use them there: export AGFT_PREPARED={prefix}"
    assert sent == ["images-00000.npy", "images-00001.npy", "labels.npy", "digests.npy", "manifest.json"]
    monkeypatch.setenv("AGFT_PREPARED", prefix)
    assert CliRunner().invoke(main, ["data", "verify", "eurosat"]).exit_code == 0
    listed = json.loads(CliRunner().invoke(main, ["data", "list", "--json"]).stdout)
    assert [each["name"] for each in listed if each["state"] == "prepared"] == ["eurosat"]
    use_s3_data()
    loaded = load_stored(entry)
    folders = list((tmp_path / "cache/datasets").glob("eurosat-*"))
    assert not (folders[0] / "images-00000.npy").exists()
    monkeypatch.setenv("AGFT_PREPARED", str(tmp_path / "prepared"))
    local = load_stored(entry)
    assert torch.equal(loaded.images[torch.tensor([15, 3])], local.images[torch.tensor([15, 3])])
    assert loaded.content_hash == local.content_hash
    kept = folders[0] / "images-00000.npy"
    kept.write_bytes(b"damaged")
    monkeypatch.setenv("AGFT_PREPARED", prefix)
    assert torch.equal(load_stored(entry).images[torch.tensor([3])], local.images[torch.tensor([3])])
    assert kept.stat().st_size > 1_000_000, "fetched again"
    storage.put_bytes(f"{prefix}/eurosat/labels.npy", b"other")
    storage.delete(f"{prefix}/eurosat/images-00001.npy")
    monkeypatch.setenv("AGFT_PREPARED", prefix)
    result = CliRunner().invoke(main, ["data", "verify", "eurosat"])
    assert result.exit_code == 1
    assert f"{prefix}/eurosat/images-00001.npy: not there" in result.stderr
    assert f"{prefix}/eurosat/labels.npy: its SHA-256 is" in result.stderr


LOAD = """
import sys
import infra.storage
from study.artifacts.sources import use_s3_data
from tests.support.miniatures import row
from trainers.data.stored import load_stored

get = infra.storage.get_file
infra.storage.get_file = lambda uri, path, **k: print(uri.rsplit("/")[-1]) or get(uri, path, **k)
use_s3_data()
images = load_stored(row("eurosat", 20, 10)).images
print(int(images[:].sum()))
"""


def test_two_processes_of_a_node_share_one_copy_of_what_is_in_s3(prefix, tmp_path, monkeypatch):
    make, images, classes = MINIATURES["eurosat"]
    make(tmp_path)
    entry = row("eurosat", images, classes)
    small_parts(monkeypatch)
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "DATASETS", datasets_with({"eurosat": entry}))
    result = CliRunner().invoke(main, ["data", "prepare", "eurosat", "--to", prefix])
    assert result.exit_code == 0, result.stderr
    monkeypatch.setenv("AGFT_PREPARED", prefix)
    command = [sys.executable, "-c", LOAD]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0][-1] == said[1][-1]
    files = ["digests.npy", "images-00000.npy", "images-00001.npy", "labels.npy", "manifest.json", "manifest.json"]
    assert sorted(line for lines in said for line in lines[:-1]) == files


def test_a_set_that_was_prepared_anew_replaces_the_one_in_s3_manifest_first_and_last(prefix, tmp_path, monkeypatch):
    """No reader ever meets a manifest beside files of another one."""
    from infra import storage

    make, images, classes = MINIATURES["eurosat"]
    make(tmp_path)
    entry = row("eurosat", images, classes)
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    monkeypatch.setattr(data, "DATASETS", datasets_with({"eurosat": entry}))
    assert CliRunner().invoke(main, ["data", "prepare", "eurosat", "--to", prefix]).exit_code == 0
    first = storage.get_json(f"{prefix}/eurosat/manifest.json")
    shutil.rmtree(tmp_path / "prepared")
    shutil.copy(tmp_path / "eurosat/2750/River/River_0.jpg", tmp_path / "eurosat/2750/Forest/Forest_0.jpg")
    seen: list[bool] = []
    put = storage.put_file

    def watched(path: Path, uri: str, **settings: Any) -> Any:
        seen.append(storage.head(f"{prefix}/eurosat/manifest.json") is not None)
        return put(path, uri, **settings)

    monkeypatch.setattr(storage, "put_file", watched)
    assert CliRunner().invoke(main, ["data", "prepare", "eurosat", "--to", prefix]).exit_code == 0
    assert seen
    assert not any(seen)
    second = storage.get_json(f"{prefix}/eurosat/manifest.json")
    assert first is not None
    assert second is not None
    assert first[0]["shards"] != second[0]["shards"]
