"""Paths in users' files: found from the file's own folder, whatever folder the command is called in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from study.cli.main import main
from study.comparison.file import load_comparison
from study.spec.files import load_study
from study.spec.places import absolute, data_at, local_places, weights_at
from study.spec.suite import load_suite
from tests.support.study_files import minimal
from trainers.model.bundled import weights_path
from trainers.schema.training import ModelConfig

DATA = "{train: folder:pics/train, dev: [tiny-shapes], confirm: [folder:../more], final: [tiny-letters]}"


def test_relative_paths_are_found_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "studies"
    (here / "exported").mkdir(parents=True)
    text = minimal(
        data=DATA, model="{arch: tiny-clip, pretrained: weights.safetensors}",
        search="{model.pretrained: {choices: [a/b.pt, exported, bundled]}}", warm_starts="[{model.pretrained: a/b.pt}]",
    )  # fmt: skip
    (here / "study.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    spec = load_study(Path("studies/study.yaml"))
    assert spec.model.pretrained == str(here / "weights.safetensors")
    assert spec.data.train == f"folder:{here}/pics/train"
    assert spec.data.confirm == (f"folder:{here}/../more",)
    assert spec.search["model.pretrained"]["choices"] == [f"{here}/a/b.pt", f"{here}/exported", "bundled"]
    assert spec.warm_starts == ({"model.pretrained": f"{here}/a/b.pt"},)
    assert spec.canonical() == load_study(here / "study.yaml").canonical()
    assert local_places(spec.model_dump(mode="json")) == [
        f"{here}/pics/train", f"{here}/../more", f"{here}/weights.safetensors", f"{here}/a/b.pt", f"{here}/exported",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [("w.safetensors", "/b/w.safetensors"), ("./w.pt", "/b/w.pt"), ("../w.pth", "/b/../w.pth"), ("W.PT", "/b/W.PT"),
     ("last.ckpt", "/b/last.ckpt"), ("w.pth.tar", "/b/w.pth.tar"), ("my weights.bin", "/b/my weights.bin"),
     ("runs/best", "/b/runs/best"), ("/abs/w.pt", "/abs/w.pt"), ("local-dir:export", "local-dir:/b/export"),
     ("local-dir:/abs", "local-dir:/abs")],
)  # fmt: skip
def test_weights_however_they_are_written_are_found_from_the_files_folder(text: str, found: str) -> None:
    assert weights_at(text, Path("/b")) == found
    assert ModelConfig(pretrained=text).names_a_place()


@pytest.mark.parametrize(
    ("text", "found"),
    [("folder:pics", "folder:/b/pics"), ("folder:./pics/", "folder:/b/pics"), ("folder:../pics", "folder:/b/../pics"),
     ("folder:my pics", "folder:/b/my pics"), ("folder:/abs", "folder:/abs"),
     ("folder:a/folder:b", "folder:/b/a/folder:b"),
     ("corrupted:fog/3:folder:pics", "corrupted:fog/3:folder:/b/pics"), ("corrupted:fog/3:dtd", "corrupted:fog/3:dtd"),
     ("folder:", "folder:"), ("tiny-shapes", "tiny-shapes"), ("folder", "folder")],
)  # fmt: skip
def test_datasets_however_they_are_written_are_found_from_the_files_folder(text: str, found: str) -> None:
    assert data_at(text, Path("/b")) == found


def test_a_corrupted_folder_is_a_place_of_this_machine_as_well(tmp_path: Path) -> None:
    sets = (
        "{train: folder:pics, dev: ['corrupted:contrast/3:folder:pics/dev'], confirm: [tiny-colors], final: folder:~}"
    )
    (tmp_path / "study.yaml").write_text(minimal(data=sets, model="{arch: tiny-clip, pretrained: last.ckpt}"))
    assert local_places(load_study(tmp_path / "study.yaml").model_dump(mode="json")) == [
        f"{tmp_path}/pics", f"{tmp_path}/pics/dev", str(Path.home()), f"{tmp_path}/last.ckpt",
    ]  # fmt: skip


def test_a_suites_and_a_comparisons_paths_are_too(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(
        "name: s\ndatasets: [folder:pics, tiny-digits]\nattacks: {attack: {name: pgd}}\n"
    )
    assert load_suite(str(tmp_path / "suite.yaml")).datasets == (f"folder:{tmp_path}/pics", "tiny-digits")
    recipe = yaml.safe_load(Path("study/recipes/compare.yaml").read_text())
    recipe["data"]["train"] = "folder:pics"
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert load_comparison(tmp_path / "compare.yaml").shared().data.train == f"folder:{tmp_path}/pics"


@pytest.mark.parametrize("text", ["openai", "bundled", "s3://b/k.pt", "hf-hub:org/name", "laion2b_s34b_b79k", ""])
def test_tags_and_addresses_are_no_paths(text: str, tmp_path: Path) -> None:
    assert weights_at(text, tmp_path) == text


def test_what_makes_no_sense_is_left_for_whoever_says_so(tmp_path: Path) -> None:
    odd = {"model": 3, "data": {"train": None, "dev": [3, ["folder:x"]]}, "search": [], "warm_starts": {"a": 1}}
    assert absolute(odd, tmp_path)["data"]["dev"] == [3, [f"folder:{tmp_path}/x"]]
    assert weights_at("a" * 300, tmp_path) == "a" * 300
    assert weights_at("~nobody-of-this-name/w.pt", tmp_path).endswith("w.pt")


def test_init_writes_a_path_of_the_shell_as_what_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shell").mkdir()
    shutil.copy(weights_path(), tmp_path / "shell/w.safetensors")
    monkeypatch.chdir(tmp_path / "shell")
    command = ["init", "../new.yaml", "--arch", "tiny-clip", "--pretrained", "w.safetensors"]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert load_study(tmp_path / "new.yaml").model.pretrained == f"{tmp_path}/shell/w.safetensors"
