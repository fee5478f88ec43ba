"""Smoke forms of the shipped recipes: drawn pictures, random weights of the real architecture, trained and measured."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from study.begin.recipes import block, recipe, recipes
from study.cli.main import main
from study.comparison.file import parse_comparison
from study.search.proposals import configured, first_proposals
from study.spec.config import StudyConfig
from study.spec.files import load_study
from trainers.model import bundled as tiny
from trainers.model.pretrained import load_clip
from trainers.model.weights import load_weights
from trainers.schema.records import Decision
from trainers.training.loop import train
from trainers.trial_config import TrialConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
REAL = [name for name in recipes() if (block(recipe(name), "model") or {}).get("arch", tiny.ARCH) != tiny.ARCH]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def studies(file: Path) -> list[StudyConfig]:
    """Of a study file one, of a comparison one a method."""
    text = file.read_text()
    if block(text, "methods"):
        return list(parse_comparison(text, source=str(file)).searches.values())
    return [load_study(file)]


@pytest.mark.parametrize("name", REAL)
def test_a_smoke_form_trains_the_real_architecture_and_leaves_its_text_side_alone(
    name: str, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "smoke.yaml"
    done = CliRunner().invoke(
        main, ["init", str(file), "--recipe", name, "--smoke"], env={"AGFT_HOME": str(home), "AGFT_STUDY_DB": ""}
    )
    assert done.exit_code == 0, done.output
    found = studies(file)
    assert {spec.model.arch for spec in found} == {block(recipe(name), "model")["arch"]}
    for spec in found:
        [params] = first_proposals(spec, 1)
        config = TrialConfig.model_validate(configured(spec.base(), params, spec.dimensions()))
        folder = tmp_path / f"{spec.name}-{spec.method.name}"
        with torch.random.fork_rng(devices=[]):
            result = train(config, report=lambda _: Decision.CONTINUE, workdir=folder)
        [record], best = result.history, result.best_weights
        assert best is not None
        assert math.isfinite(record.train_loss)
        assert record.steps == 2
        assert set(record.datasets) == {"tiny-shapes"}
        before, after = load_clip(spec.model).state_dict(), load_weights(best).state_dict()
        changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
        assert changed, "an update changes weights"
        assert all(key.startswith("visual.") for key in changed)
        for path in folder.iterdir():
            os.unlink(path)
