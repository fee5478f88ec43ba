"""`agft reproduce`: what is missing is named at once; its smoke form goes from training to the published tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from study.begin.recipes import recipe
from study.cli.here.reproduce import PROTOCOLS, SMOKE_SETS
from study.cli.main import main
from study.spec.files import parse_study
from tests.support.services.real_run import Run, cleared
from trainers.objectives.presets import PRESETS
from trainers.schema.suite import SUITES, ZERO_SHOT_15

SETS = ("imagenet-train", "imagenet-v2", "imagenet-a", *ZERO_SHOT_15)


def test_one_message_names_every_set_weights_and_device_that_are_not_here_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    home = tmp_path / "home"
    given = {"AGFT_HOME": str(home), "AGFT_DATA": str(tmp_path / "data"), "AGFT_PREPARED": "", "AGFT_STUDY_DB": ""}
    wrong = tmp_path / "none.safetensors"
    done = CliRunner().invoke(main, ["reproduce", "agft-table", "--weights", str(wrong)], env=given)
    assert done.exit_code == 2
    for name in SETS:
        assert f"'{name}' is not prepared (looked in {tmp_path / 'data'}" in done.output, name
    assert str(wrong) in done.output
    assert not (home / "studies.db").exists()
    assert CliRunner().invoke(main, ["reproduce", "agft-tabel"], env=given).exit_code == 2


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_a_papers_preset_unchanged_and_a_suite_in_its_procedure(name: str) -> None:
    spec, suite = parse_study(recipe(PROTOCOLS[name].recipe), source=name), SUITES[PROTOCOLS[name].suite][0]
    assert (spec.budget.trials, spec.dimensions(), suite.protocol) == (1, [], "paper")
    published = PRESETS["agft-paper"]
    train, method = spec.train.model_dump(mode="json"), spec.method.model_dump(mode="json")
    assert {key: train[key] for key in ("epochs", "batch_size")} == {
        key: published["train"][key] for key in ("epochs", "batch_size")
    }
    assert method["scale_ratio"] == published["method"]["scale_ratio"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_smoke_form_trains_a_real_architecture_measures_it_and_compares_it_with_nothing(tmp_path: Path) -> None:
    with cleared(Run(tmp_path / "home", tmp_path / "none.yaml")) as run:
        found = json.loads(run.agft("reproduce", "agft-table", "--smoke", "--json").stdout)
        assert found["model"]["arch"] == "ViT-B-32-quickgelu"
        assert all(table["barrier"] for table in found["tables"]), "random weights on drawn sets are beside nothing"
        [trial] = run.trials("agft-table-smoke")
        assert (trial["state"], len(SMOKE_SETS)) == ("complete", 2)
        again = run.agft("reproduce", "agft-table", "--smoke").stdout
        assert "Nothing published can be compared" in again
