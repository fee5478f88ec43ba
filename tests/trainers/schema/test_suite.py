"""What an evaluation may consist of, and what is said about one that cannot be run."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from trainers.data import DATASETS
from trainers.schema.suite import SUITES, AttackAt, Suite, problems


def suite(**changes: object) -> Suite:
    fields = {"name": "mine", "datasets": ["tiny-digits"], "attacks": [{"attack": {"name": "pgd"}, "eps": ["4/255"]}]}
    return Suite.model_validate({**fields, **changes})


@pytest.mark.parametrize("name", SUITES)
def test_every_named_suite_can_be_run(name: str) -> None:
    found, text = SUITES[name]
    assert found.name == name
    assert text
    assert problems(found) == []
    assert Suite.model_validate(found.model_dump(mode="json")) == found


def test_the_papers_suite_has_fifteen_sets_and_the_papers_attacks() -> None:
    found, _ = SUITES["zero-shot-15-paper"]
    assert len(found.datasets) == 15
    assert sum(DATASETS[name].num_images for name in found.datasets) == 334_128
    assert found.protocol == "paper"
    assert found.source == ("imagenet",)
    pgd, cw, weak = found.attacks
    assert (pgd.attack.name, cw.attack.name, weak.attack.name) == ("pgd", "cw", "aa-agft")
    assert [entry.eps for entry in found.attacks] == [(1 / 255,)] * 3
    assert pgd.attack.resolved_step_size(1 / 255) == cw.attack.resolved_step_size(1 / 255) == 1 / 255


def test_the_default_suite_attacks_every_image_with_pgd_and_a_thousand_with_apgd() -> None:
    pgd, apgd = SUITES["zero-shot-15"][0].attacks
    assert (pgd.attack.name, pgd.samples, apgd.attack.name, apgd.samples) == ("pgd", None, "apgd", 1000)


def test_all_mistakes_are_said_at_once() -> None:
    wrong = suite(
        datasets=["tiny-digit", "tiny-letters", "tiny-letters"],
        attacks=[{"attack": {"name": "cw"}, "norm": "l2"}, {"attack": {"name": "pgd"}}, {"attack": {"name": "pgd"}}],
        source=["cifar10"],
    )
    found = "\n".join(problems(wrong))
    assert "datasets.0: 'tiny-digit'" in found
    assert "tiny-digits" in found
    assert "datasets: 'tiny-letters' is there twice" in found
    assert "attacks: 'pgd-20' is there twice" in found
    assert "source: 'cifar10' is none of the datasets" in found
    assert "attacks.0.attack.name: 'cw' is defined in linf, not in l2" in found


def test_an_attack_that_two_classes_do_not_allow_is_named_with_the_dataset() -> None:
    wrong = suite(datasets=["pcam", "cifar10"], attacks=[{"attack": {"name": "apgd-t"}}])
    (found,) = problems(wrong)
    assert found.startswith("attacks.0.attack.name: 'apgd-t' needs at least 4 classes, and here there are 2")
    assert found.endswith("(dataset pcam)")
    assert problems(suite(datasets=["pcam", "cifar10"], attacks=[{"attack": {"name": "apgd"}}])) == []


def test_an_image_folder_has_as_many_classes_as_there_are_folders(tmp_path: Path) -> None:
    for name in ("red", "green", "blue"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    names = [f"folder:{tmp_path}", "folder:/is/not/here"]
    assert problems(suite(datasets=names, attacks=[{"attack": {"name": "apgd-dlr"}}])) == []
    (found,) = problems(suite(datasets=names, attacks=[{"attack": {"name": "apgd-t"}}]))
    assert "needs at least 4 classes, and here there are 3" in found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attack": {"name": "pgd"}, "eps": ["300/255"]}, "no length in the L-inf norm"),
        ({"attack": {"name": "pgd"}, "eps": ["4/255", 4 / 255]}, "4/255, 4/255 has a radius twice"),
        ({"attack": {"name": "pdg"}}, "'pgd'"),
        ({"attack": {"name": "pgd", "step": 3}}, "step"),
        ({"attack": {"name": "pgd"}, "samples": 0}, "greater than or equal to 1"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AttackAt.model_validate(fields)


def test_l2_radii_may_exceed_one_and_are_part_of_the_name() -> None:
    entry = AttackAt.model_validate({"attack": {"name": "pgd"}, "norm": "l2", "eps": [3]})
    assert entry.label == "pgd-20-l2"
