"""What a study file, a policy file and the command line may say about promotion; every mistake with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from study.cli.main import main
from study.errors import StudyFileError
from study.plan.cost import study_passes
from study.spec.config import StudyConfig, load_canonical
from study.spec.evaluation import FinalEvaluation, Selection
from study.spec.files import load_policy, parse_study
from study.spec.promotion import SanityGate
from tests.support.epochs import weights
from tests.support.promoted import STUDY, finished_study
from trainers.schema.checks import CHECKS

THERE = weights("s3://agft/x")


def study(**changed: Any) -> StudyConfig:
    return parse_study(yaml.safe_dump({**STUDY, "name": "s", **changed}), source="s.yaml")


def problems(**changed: Any) -> str:
    with pytest.raises(StudyFileError) as caught:
        study(**changed)
    return str(caught.value)


def final(**settings: Any) -> dict[str, Any]:
    return {"select": STUDY["evaluate"]["select"], "final": settings}


def test_one_attack_is_said_as_before_and_comes_back_from_the_store():
    spec = study()
    assert load_canonical(spec.canonical()) == spec
    assert spec.evaluate.final.attack.steps == 4
    [entry] = spec.evaluate.final.suite("final", spec.data.final).attacks
    assert (entry.label, entry.samples) == ("pgd-4", 96)
    plain, final = (each().suite("s", ["tiny-digits"]) for each in (Selection, FinalEvaluation))
    assert plain == final, "an evaluation without `attacks` is the plain one"


def test_several_attacks_are_a_suites_and_come_back_from_the_store():
    attacks = [{"attack": {"name": "pgd", "steps": 20}, "eps": ["4/255"]},
               {"attack": {"name": "apgd"}, "eps": ["4/255", "8/255"], "samples": 50}]  # fmt: skip
    spec = study(evaluate=final(attacks=attacks, samples=200))
    assert [(entry.label, entry.samples) for entry in spec.evaluate.final.suite("final", spec.data.final).attacks] == [
        ("pgd-20", 200),
        ("apgd-100", 50),
    ]
    assert load_canonical(spec.canonical()) == spec
    assert study_passes(spec)["promotion"] > study_passes(study())["promotion"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attacks": [{"attack": {"name": "pdg"}}]}, "attacks.0.attack.name = 'pdg': no such attack; did you mean"),
        ({"attacks": [{"attack": {"name": "transfer"}}]}, "transfer needs another model"),
        ({"attacks": [{"attack": {"name": "pgd"}}, {"attack": {"name": "pgd"}}]}, "pgd-20 twice"),
        ({"attacks": [{"attack": {"name": "pgd"}}], "attack": {"steps": 3}}, "write attack, or attacks, but not both"),
        ({"attacks": [{"attack": {"name": "square"}, "norm": "l2"}]}, "evaluate.final.attacks.0.attack.name: 'square'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_final_attacks_is_said_with_the_line(settings, said):
    text = problems(evaluate=final(**settings))
    assert said in text
    assert text.startswith("s.yaml: line ")


@pytest.mark.parametrize(
    ("promote", "said"),
    [
        ({"gates": {"flors": {}}}, "promote.gates.flors = {}: no such field; did you mean 'floors'?"),
        ({"gates": {"floors": {"clean_accuracy": "> 0.5"}}}, "is not a floor"),
        ({"gates": {"non_inferior": {"clean_accuracy": 3}}}, "less than or equal to 1"),
        ({"gates": {"max_seed_spread": {"clean_accuracy": 0.1}}}, "a spread needs seeds: 2 or more"),
        ({"ship": "median", "seeds": 2}, "the median of fresh seeds needs seeds: 3 or more"),
        ({"ship": "luckiest"}, "'searched' or 'median'"),
        ({"preference": {"robust": 1}}, "goal.metrics names no several metrics"),
        ({"gates": {"sanity": {"checks": ["pgd"]}}}, "pgd-apgd-gap"),
    ],
)
def test_what_is_wrong_with_the_promote_block_is_said(promote, said):
    assert said in problems(promote=promote)


def test_the_checks_that_a_gate_may_name_are_those_that_exist():
    field = SanityGate.model_validate({"checks": list(CHECKS)})
    assert field.checks == tuple(CHECKS)


def test_a_policy_file_holds_gates_and_every_mistake_has_its_line(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("floors: {clean_accuracy: '>= clip - 0.02'}\nimprovement: null\nsanity: {samples: 100}\n")
    gates = load_policy(path)
    assert (gates.improvement, gates.sanity, gates.floors) == (
        None, SanityGate(samples=100), {"clean_accuracy": ">= clip - 0.02"},
    )  # fmt: skip
    path.write_text("clean_tre: true\nfloors:\n  clean_accuracy: lots\nimprovement: {buy: 1}\n")
    with pytest.raises(StudyFileError) as caught:
        load_policy(path)
    lines = str(caught.value).splitlines()
    assert f"{path}: line 1: clean_tre = True: no such field; did you mean 'clean_tree'?" in lines[0]
    assert f"{path}: line 3: floors.clean_accuracy = 'lots': 'lots' is not a floor" in lines[1]
    assert f"{path}: line 4: improvement.buy = 1: no such field; did you mean 'by'?" in lines[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGFT_HOME", str(tmp_path))
    monkeypatch.delenv("AGFT_STUDY_DB", raising=False)
    url = f"sqlite:///{tmp_path}/studies.db"
    finished_study(url, "done", "agft", {0: (THERE, 0.95, 0.4), 1: (None, 0.9, 0.9)})
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dune"], "did you mean 'done'?"),
        (["done", "--force"], "--force: needs --reason TEXT"),
        (["done", "--force", "--reason", "  "], "--force: needs --reason TEXT"),
        (["done", "--reason", "x"], "it goes with --force"),
        (["done", "--final"], "goes with --dry-run"),
        (["done", "--dry-run", "--force", "--reason", "x"], "a dry run only says"),
        (["done", "--trial", "1"], "only a trial of full length can be promoted; full-length trials: 0"),
        (["done", "--trial", "9"], "no such trial"),
        (["done", "--preference", "clean=1"], "chooses on a front"),
        (["done", "--policy", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_input_is_answered_with_2_before_anything_is_started(home, arguments, said):
    result = CliRunner().invoke(main, ["promote", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not (home / "secrets.json").exists(), "no service was started"


def test_a_spread_gate_of_a_policy_needs_seeds(home):
    policy = home / "policy.yaml"
    policy.write_text("max_seed_spread: {robust_accuracy: 0.02}\n")
    result = CliRunner().invoke(main, ["promote", "done", "--policy", str(policy)])
    assert result.exit_code == 2
    assert "--seeds 2 or more" in result.stderr
