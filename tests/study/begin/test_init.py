"""`agft init`: every recipe, a folder of pictures with roles, weights of one's own, devices."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from study.artifacts.ready import trials_here
from study.begin.folder import BY_CLASS, propose
from study.begin.recipes import for_devices, recipe, recipes, smoke, with_fields
from study.cli.main import main
from study.comparison.file import parse_comparison
from study.errors import UserError
from study.plan.cost import study_passes
from study.plan.estimate import encoder_of, estimate, memory_of
from study.spec.config import StudyConfig
from study.spec.files import load_study, parse_study
from study.spec.suite import load_suite

KINDS = {"compare": "compare", "compare-b32": "compare", "suite": "suite"}
STUDIES = [name for name in recipes() if name not in KINDS]
COSTED = [name for name, text in recipes().items() if "-train\n" in text]  # on a set whose size is known


def init(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments], env={"AGFT_HOME": str(folder / "home"), "AGFT_STUDY_DB": ""})


def pictures(folder: Path, classes: int, each: int) -> Path:
    for label in range(classes):
        place = folder / f"class-{label:02d}"
        place.mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", (8, 8), (label * 9 % 256, number * 20 % 256, 0)).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_written_under_a_name_of_its_own_and_says_what_it_needs(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    done = init(tmp_path, str(file), "--recipe", name, "--gpus", "1")
    assert done.exit_code == 0, done.output
    text = file.read_text()
    assert text.startswith("# yaml-language-server: $schema=file://")
    if name not in KINDS:
        assert load_study(file).name == "mine"
    elif KINDS[name] == "suite":
        assert load_suite(str(file)).datasets
    else:
        assert parse_comparison(text, source="mine").name == "mine"
    if "openai" in text:
        assert "# Needs: " in text
        assert "# Beside: " in text


def test_without_options_it_is_the_demo_which_runs_anywhere(tmp_path: Path) -> None:
    done = init(tmp_path, str(tmp_path / "first.yaml"), "--json")
    found = json.loads(done.output)
    assert found["study"]["model"] == {"arch": "tiny-clip", "pretrained": "bundled"}
    assert found["study"]["budget"]["trials"] == 8


@pytest.mark.parametrize(("classes", "how", "held"), [(4, "by image", True), (BY_CLASS, "by class", False)])
def test_a_folder_gets_roles_that_share_no_picture(classes: int, how: str, held: bool, tmp_path: Path) -> None:
    done = init(
        tmp_path, str(tmp_path / "mine.yaml"), "--data", str(pictures(tmp_path / "in", classes, 12)), "--gpus", "0"
    )
    assert done.exit_code == 0, done.output
    assert how in done.output
    study = load_study(tmp_path / "mine.yaml")
    folders = {role: Path(names[0].removeprefix("folder:")) for role, names in study.data_sets().items()}
    seen = {role: {os.path.realpath(each) for each in folder.rglob("*.png")} for role, folder in folders.items()}
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 12 * classes
    shared = {each.name for each in folders["train"].iterdir()} & {each.name for each in folders["final"].iterdir()}
    assert bool(shared) == held
    again = propose(tmp_path / "in").sets
    counts = {role: sum(map(len, found.values())) for role, found in again.items()}
    assert counts == {role: len(found) for role, found in seen.items()}


def test_a_folder_with_splits_trains_on_the_one_for_training(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pictures(tmp_path / "in" / split, 3, 9)
    sets = propose(tmp_path / "in").sets
    assert {path.parts[-3] for found in sets["train"].values() for path in found} == {"train"}
    assert {path.parts[-3] for role in ("dev", "confirm", "final") for f in sets[role].values() for path in f} == {
        "val"
    }


def test_too_few_pictures_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few pictures"):
        propose(pictures(tmp_path / "in", 3, 4))
    done = init(tmp_path, str(tmp_path / "mine.yaml"), "--data", str(tmp_path / "in"))
    assert done.exit_code == 2
    assert not (tmp_path / "mine.yaml").exists()
    assert not (tmp_path / "mine-data").exists()


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        ("", ["--weights", "{}/none.safetensors"], "model.pretrained: {}/none.safetensors: no such file; put it there"),
        ("w.pt", ["--weights", "{}/w.pt"], "w.pt: a git-lfs pointer instead of the file"),
        ("w.pt", ["--weights", "{}/w.pt", "--arch", "tiny-clip"], "w.pt: a git-lfs pointer instead of the file"),
        ("in/class-01/x.jpg", [], "--data: folder:{}/in: {}/in/class-01/x.jpg: not a readable image ("),
        ("", ["--arch", "ViT-B-33"], "'ViT-B-33': no such architecture"),
        ("", ["--weights", "laion2b"], "model.pretrained: open_clip does not know 'laion2b'; nearest: laion400m_e32"),
        ("", ["--weights", "openai", "--smoke"], "--smoke, --weights: a smoke form has random weights; give one"),
    ],
)
def test_data_and_weights_are_looked_at_and_of_what_is_refused_nothing_is_written(
    file: str, arguments: list[str], said: str, tmp_path: Path
) -> None:
    pictures(tmp_path / "in", 2, 8)
    if file:
        (tmp_path / file).write_text("version https://git-lfs.github.com/spec/v1\nsize 3\n")
    given = [each.format(tmp_path) for each in arguments]
    done = init(tmp_path, str(tmp_path / "mine.yaml"), "--data", str(tmp_path / "in"), *given)
    assert done.exit_code == 2, done.output
    assert said.format(tmp_path, tmp_path) in done.output
    assert not (tmp_path / "mine.yaml").exists()
    assert not (tmp_path / "mine-data").exists()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind == "compare"])
def test_the_smoke_form_of_a_comparison_is_one(name: str) -> None:
    found = parse_comparison(smoke(recipe(name), None), source=name)
    assert len(found.seeds) == 2, "fewer have no spread to report"
    assert {search.train.epochs for search in found.searches.values()} == {1}


def test_a_batch_is_cut_into_parts_where_a_gpu_is_too_small_for_it() -> None:
    whole, cut = (parse_study(for_devices(recipe("agft-b16"), 1, memory), source="x") for memory in (80e9, 8e9))
    assert whole.train.accumulation == 1
    encoder, parts = encoder_of("ViT-B-16-quickgelu"), cut.train.accumulation
    need = [memory_of(encoder, cut.train, -(-256 // each), "bf16") for each in (parts, parts - 1)]
    assert need[0] <= 8e9 * 8 / 9 < need[1], "as many parts as are needed and not one more"


def test_comments_of_a_block_stay_beside_a_changed_field() -> None:
    text = "train:\n  epochs: 3    # short\n  lr: 1    # high\nseed: 0\n"
    assert with_fields(text, "train", {"epochs": 5, "ema": 0.9}) == (
        "train:\n  epochs: 5\n  lr: 1    # high\n  ema: 0.9\nseed: 0\n"
    )


@pytest.mark.parametrize("name", STUDIES)
def test_the_smoke_form_of_every_recipe_is_a_study_of_one_short_trial(name: str) -> None:
    found = parse_study(smoke(recipe(name), "/w.safetensors"), source=name)
    assert (found.budget.trials, found.train.epochs, found.train.samples_per_epoch) == (1, 1, 8)
    assert parse_study(for_devices(recipe(name), 0), source=name).budget.trials <= 8
    assert found.model.arch == yaml.safe_load(recipe(name))["model"]["arch"]


def cost_line(name: str) -> str:
    """What a recipe's head says of its cost, from the cost model."""
    text = recipe(name)
    if name in KINDS:
        comparison = parse_comparison(text, source=name)
        studies, again = list(comparison.searches.values()), len(comparison.seeds)
    else:
        studies, again = [parse_study(text, source=name)], 0
    rows = [(_on_a100(study), study.budget.trials + again) for study in studies]
    trial, whole = max(hours for (hours, _), _ in rows), sum(hours * runs for (hours, _), runs in rows)
    size = max(size for (_, size), _ in rows)
    return (f"# Costs: estimated, nothing was measured: {trial:.3g} h a trial and {whole:.3g} h in all on one A100 "
            f"80 GB, {size:.2g} GB\n#   of checkpoints a trial; `agft plan` says it for other devices.\n")  # fmt: skip


def _on_a100(study: StudyConfig) -> tuple[float, float]:
    """Hours and gigabytes of a trial."""
    found = estimate(study, study_passes(study))
    row = next(each for each in found["rows"] if each["device"] == "A100 80 GB")
    assert not row["lack"], row
    return row["hours_per_trial"], found["bytes_per_trial"] / 1e9


@pytest.mark.parametrize("name", COSTED)
def test_what_a_recipe_says_of_its_cost_is_what_the_cost_model_says(name: str) -> None:
    assert cost_line(name) in recipe(name), f"its head has to say\n{cost_line(name)}"


def test_the_tiny_clip_on_ones_own_pictures_fits_a_machine_without_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    done = init(tmp_path, str(file), "--data", str(pictures(tmp_path / "in", 6, 8)), "--arch", "tiny-clip",
                "--weights", "bundled", "--gpus", "0")  # fmt: skip
    assert done.exit_code == 0, done.output
    study = load_study(file)
    assert study.resources.of_trial() == {"CPU": 1.0}
    assert trials_here(study)[1] == ""
    assert re.search(r"this CPU +fp32 +\S+ s +\S+ (s|min)", done.output), "costs are in words"
