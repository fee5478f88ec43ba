"""The published recipes resolve, are what the papers say, and give way to the file's own values."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from study.cli.main import main
from study.errors import StudyFileError
from study.spec.files import parse_study
from trainers.objectives import METHODS
from trainers.objectives.presets import PRESETS
from trainers.schema.training import AttackConfig, Steps, TrainConfig
from trainers.training.update import learning_rate

FILE = {
    "name": "small",
    "data": {
        "train": "folder:imagenet",
        "dev": ["tiny-shapes"],
        "confirm": ["tiny-colors"],
        "final": ["tiny-letters"],
    },
    "budget": {"trials": 1},
}


def study(preset: str, **changes: Any) -> Any:
    return parse_study(yaml.safe_dump({**FILE, "preset": preset, **changes}), source="study.yaml")


def problems(preset: str, **changes: Any) -> str:
    with pytest.raises(StudyFileError) as caught:
        study(preset, **changes)
    return str(caught.value)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_study_with_three_more_blocks(name: str) -> None:
    found = study(name)
    assert found.method.name == PRESETS[name]["method"]["name"]
    assert found.train.official_schedule is not None
    assert found.train.epochs * 1_281_167 // found.train.batch_size > 10_000


def test_every_method_has_a_published_recipe() -> None:
    assert {preset["method"]["name"] for preset in PRESETS.values()} == set(METHODS)


def test_agfts_recipe_is_the_papers_with_its_schedule_to_the_update() -> None:
    found = study("agft-paper")
    assert found.method == METHODS["agft"](name="agft")  # the fields' defaults are the paper's
    assert found.attack == AttackConfig()
    train: TrainConfig = found.train
    assert (train.epochs, train.batch_size, train.precision) == (10, 256, "fp16")
    assert train.optimizer == TrainConfig().optimizer

    def rate(step: int) -> float:
        return learning_rate(step, 50_050, train.optimizer.lr, train.warmup, official=train.official_schedule)

    assert [rate(0), rate(1), rate(999)] == pytest.approx([0.0, 4e-7, 3.996e-4])


def test_fares_attack_has_momentum_and_ten_steps() -> None:
    found = study("fare-paper")
    assert (found.attack.steps, found.attack.momentum, found.train.warmup) == (10, 0.9, Steps(steps=1400))
    assert found.attack.resolved_step_size() == pytest.approx(1 / 255)
    assert found.train.optimizer.beta2 == 0.999


def test_the_files_own_values_win_field_by_field() -> None:
    found = study("agft-paper", method={"scale_ratio": 0.7}, train={"epochs": 3, "optimizer": {"lr": 1e-3}})
    assert (found.method.name, found.method.scale_ratio, found.method.logit_scale.of_model) == ("agft", 0.7, 1.8)
    assert (found.train.epochs, found.train.batch_size) == (3, 256)
    assert (found.train.optimizer.lr, found.train.optimizer.momentum) == (1e-3, 0.9)
    assert study("agft-paper", train={"warmup": 0.1}).train.warmup == 0.1
    assert study("agft-paper", method={"logit_scale": 90}).method.logit_scale == 90


def test_another_optimizer_takes_nothing_from_the_presets() -> None:
    found = study("fare-paper", train={"optimizer": {"name": "sgd", "lr": 0.1}})
    assert (found.train.optimizer.name, found.train.optimizer.weight_decay) == ("sgd", 0.0)


def test_a_preset_and_the_same_values_written_out_are_one_study() -> None:
    written = dict(PRESETS["tecoa-paper"])
    assert study("tecoa-paper").spec_hash() == parse_study(yaml.safe_dump({**FILE, **written}), source="x").spec_hash()


def test_an_unknown_preset_and_one_for_another_method_are_refused() -> None:
    assert "'agft-papr': no such preset; did you mean 'agft-paper'?" in problems("agft-papr", method={"name": "agft"})
    text = problems("agft-paper", method={"name": "tecoa"})
    assert "is for the method 'agft', and method.name says 'tecoa'" in text


def test_init_writes_a_file_that_is_valid_and_complete(tmp_path: Any) -> None:
    path = tmp_path / "mine.yaml"
    answer = CliRunner().invoke(main, ["init", str(path), "--preset", "pmg-aft-paper"])
    assert answer.exit_code == 0, answer.output
    found = parse_study(path.read_text(), source=str(path))
    assert found.name == "mine"
    assert found.method.name == "pmg-aft"
    # The published warm-up is longer than all of the tiny set's training.
    fitting = {
        "warmup": 0.02,
        "official_schedule": None,
        "precision": "auto",
        "batch_size": 32,
        "samples_per_epoch": 32,
    }
    assert found.train == study("pmg-aft-paper", train={**fitting, "epochs": 1}).train
    assert "  # published: {steps: 1000}, official_schedule: open_clip\n" in path.read_text()
    again = CliRunner().invoke(main, ["init", str(path), "--preset", "pmg-aft-paper"])
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.parametrize("name", list(PRESETS))
def test_init_knows_every_preset(name: str, tmp_path: Any) -> None:
    answer = CliRunner().invoke(main, ["init", str(tmp_path / "a.yaml"), "--preset", name])
    assert answer.exit_code == 0, answer.output
    assert parse_study((tmp_path / "a.yaml").read_text(), source="a").method.name == PRESETS[name]["method"]["name"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_rate_of_a_written_file_falls_on_its_tiny_set(name: str, tmp_path: Any) -> None:
    CliRunner().invoke(main, ["init", str(tmp_path / "a.yaml"), "--preset", name])
    train = parse_study((tmp_path / "a.yaml").read_text(), source="a").train
    updates = train.epochs * (9600 // train.batch_size)  # tiny-color-shapes has 9600 images
    last = learning_rate(updates - 1, updates, 1.0, train.warmup, official=train.official_schedule)
    assert last < 0.05


@pytest.mark.parametrize("name", ["001", "null", "1e5", "4e-4", "1.5", "2024-01-01", "true", "a" * 63])
def test_a_written_study_has_its_files_name_whatever_yaml_would_make_of_it(name: str, tmp_path: Any) -> None:
    path = tmp_path / f"{name}.yaml"
    answer = CliRunner().invoke(main, ["init", str(path)])
    assert answer.exit_code == 0, answer.output
    assert parse_study(path.read_text(), source="a").name == name


def test_init_refuses_a_name_that_no_study_can_have(tmp_path: Any) -> None:
    path = tmp_path / f"{'a' * 70}.yaml"
    answer = CliRunner().invoke(main, ["init", str(path)])
    assert answer.exit_code == 2
    assert "must match" in answer.output
    assert "70 characters" in answer.output
    assert not path.exists()
