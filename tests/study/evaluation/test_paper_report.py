"""Our numbers beside published ones: what is comparable, what differs, and nothing that was never obtained."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.markdown import Markdown

from study.evaluation.against import against_paper, lines_of_paper
from study.evaluation.published import published, standing
from tests.support.records import record
from trainers.data import DATASETS, ZERO_SHOT_15
from trainers.evaluation.record import EvaluationRecord

FIRST = "agft: 1"
MEASURED_ON = next(table for table in published() if table.id == FIRST).measured_on
DATASET_FACTS = ("num_classes", "templates")


def like_the_paper(name: str, robust: int = 400, total: int = 1000, **changes: Any) -> EvaluationRecord:
    """A record by the paper's own procedure, but for what `changes` say."""
    _, classes, side, template = MEASURED_ON[name]
    facts = {"num_classes": classes, "templates": (template,)}
    facts |= {key: changes.pop(key) for key in DATASET_FACTS if key in changes}
    settings = {"settings": {"steps": 20, "step_size": 1 / 255}, "protocol": "paper", "images": total}
    made = record(name, 600 * total // 1000, total, robust, **{"resolution": side, **settings, **changes})
    return made.model_copy(update={"dataset": made.dataset.model_copy(update=facts)})


def whole(name: str, robust: int = 400) -> EvaluationRecord:
    """The same of every image of the set."""
    return like_the_paper(name, robust, MEASURED_ON[name][0])


def table(records: list[EvaluationRecord], name: str = FIRST) -> dict[str, Any]:
    return next(each for each in against_paper(records)["tables"] if each["id"] == name)


@pytest.mark.parametrize(
    ("name", "method", "column", "value"),
    [
        (FIRST, "AGFT", "caltech101", 82.23),
        (FIRST, "AGFT", "eurosat", 16.25),
        (FIRST, "AGFT", "mean", 46.57),
        (FIRST, "TeCoA", "imagenet", 41.29),
        (FIRST, "GLADIATOR", "cifar10", 67.89),
        (FIRST, "CLIP", "stl10", 33.10),
        ("agft: 2", "AGFT", "mean", 61.35),
        ("agft: 3", "TGA-ZSR", "mean", 23.47),
        ("agft: 4", "GLADIATOR", "mean", 41.91),
        ("agft: 5 and 15", "AGFT", "mean", 44.36),
        ("agft: 9", "AGFT", "mean", 56.12),
        ("tga-zsr: robust", "TGA-ZSR", "mean", 42.09),
        ("ucat: pgd", "TGA-ZSR", "mean", 31.55),
        ("robustvlm-b32: 2/255", "TeCoA 1/255", "mean", 26.6),
        ("robustvlm-b32: 4/255", "FARE 4/255", "mean", 21.9),
        ("robustvlm-l14: 4/255", "TeCoA 2/255", "mean", 27.0),
        ("sart: robust", "SART", "mean", 39.42),
        ("adv-w2s: aa", "Adv-W2S", "mean", 48.38),
    ],
)
def test_published_numbers_are_those_that_were_read(name: str, method: str, column: str, value: float) -> None:
    (found,) = [each for each in published() if each.id == name]
    assert found.rows[method][column] == value


def test_agfts_known_sets_sum_to_what_was_summed_by_hand() -> None:
    (first,) = [each for each in published() if each.id == FIRST]
    assert sum(value for name, value in first.rows["AGFT"].items() if name != "mean") == pytest.approx(480.69)


def test_every_published_set_is_one_of_ours_and_every_number_a_percentage() -> None:
    tables = published()
    assert len({each.id for each in tables}) == len(tables)
    for each in tables:
        for rows in each.rows.values():
            assert set(rows) <= {*DATASETS, "mean"}, each.id
            assert all(0 <= value <= 100 for value in rows.values())


def test_our_datasets_are_those_that_the_official_code_measures_on() -> None:
    assert tuple(MEASURED_ON) == ZERO_SHOT_15
    for name, (images, classes, side, template) in MEASURED_ON.items():
        entry = DATASETS[name]
        assert (entry.num_images, entry.num_classes, entry.templates) == (images, classes, (template,))
        assert entry.files is not None
        assert (entry.files.size, entry.resolution) == (side, "224" if side == 224 else "native")


def test_the_papers_own_procedure_is_compared_in_points() -> None:
    found = table([whole("cifar10", 7000), whole("caltech101", 4000)])
    assert found["barrier"] is None
    assert found["points_above"]["AGFT"] == {"cifar10": -1.72, "caltech101": -36.13}
    assert found["points_above"]["CLIP"]["cifar10"] == 59.69
    assert [line.split(":")[0] for line in found["differences"]] == [
        "theirs",
        "theirs was fine-tuned on ImageNet, eps 1/255; what ours was fine-tuned on is not in its record",
    ]
    assert len(found["missing_sets"]) == 13
    assert "mean" not in found["ours"]


def test_a_mean_needs_every_set() -> None:
    records = [like_the_paper(name) for name in ZERO_SHOT_15]
    found = table(records)
    assert found["ours"]["mean"]["accuracy"] == pytest.approx(0.4)
    assert found["ours"]["mean"]["low"] < 0.4 < found["ours"]["mean"]["high"]
    assert found["points_above"]["AGFT"]["mean"] == pytest.approx(-6.57)
    assert table(records, "agft: 2")["ours"]["mean"]["accuracy"] == pytest.approx(0.6)
    assert "mean" not in table(records[1:])["ours"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"protocol": "strict"},
            "ours is protocol strict (an image is fooled if any iterate fools it), theirs is as paper",
        ),
        ({"settings": {"steps": 50, "step_size": 1 / 255}}, "ours has 50 steps, theirs 20"),
        ({"settings": {"steps": 20}}, "our step is 0.25/255, theirs 1/255"),
        ({"settings": {"step_size": 1 / 255, "restarts": 5}}, "ours has 5 restarts, theirs 1"),
        ({"settings": {"step_size": 1 / 255, "random_start": False}}, "ours starts at the image, theirs at a random"),
        ({"images": 10_000}, "class-stratified sample: cifar10 1,000 of 10,000"),
        ({"images": 9_000}, "cifar10: ours has 9,000 images, theirs 10,000"),
        ({"num_classes": 11}, "cifar10: ours has 11 classes, theirs 10"),
        ({"resolution": 224}, "cifar10: ours has 224 pixels a side, theirs 32"),
        ({"templates": ("a {}.",)}, "cifar10: our template is 'a {}.', theirs 'This is a photo of a {}.'"),
        ({"device": "Some GPU"}, "theirs: fp16 autocast, the attack's loss averaged over the batch"),
        ({"device": "Some GPU"}, "ours: float32 on Some GPU"),
    ],
)
def test_what_differs_is_said(changes: dict[str, Any], words: str) -> None:
    found = table([like_the_paper("cifar10", **changes)])
    assert found["barrier"] is None
    assert words in " ".join(found["differences"])
    if "device" not in changes:
        assert words not in " ".join(table([whole("cifar10")])["differences"])


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"arch": "ViT-B-16"}, FIRST, "the model is ViT-B-16, theirs ViT-B-32"),
        ({"eps": 2 / 255}, FIRST, "pgd was not made at 1/255"),
        ({"attack": "cw", "settings": {}}, FIRST, "no untargeted linf pgd was made"),
        ({"settings": {"target": "random"}}, FIRST, "no untargeted linf pgd was made"),
        ({}, "agft: 4", "no untargeted linf aa-agft was made"),
        ({}, "agft: 3", "it is a mean over three radii, and whether the step grows with them was not obtained"),
        ({}, "agft: 5 and 14", "the model is ViT-B-32-quickgelu, theirs ViT-B-16"),
        ({}, "tga-zsr: robust", "its sets are sixteen of its own, and its procedure is another"),
    ],
)
def test_what_cannot_be_compared_is_not_subtracted(changes: dict[str, Any], name: str, words: str) -> None:
    found = table([like_the_paper("cifar10", **changes)], name)
    assert found["barrier"] == words
    assert found["ours"] == found["points_above"] == {}


def test_records_of_other_sets_are_not_compared() -> None:
    found = table([record("tiny-digits", 6, 10, 4)])
    assert found["barrier"] == "none of its sets was measured"


def test_of_several_attacks_the_closest_is_compared() -> None:
    closest = like_the_paper("cifar10", 300)
    others = [like_the_paper("cifar10", 200, settings={"steps": 100}), like_the_paper("cifar10", 100, settings={})]
    for records in ([closest, *others], [*others, closest]):
        assert table(records)["ours"]["cifar10"]["accuracy"] == 0.3


def test_clean_accuracy_is_that_of_the_larger_sample() -> None:
    few = record("cifar10", 10, 100, 5, attack="apgd", arch="ViT-B-32")
    assert table([few, like_the_paper("cifar10"), few], "agft: 2")["ours"]["cifar10"]["accuracy"] == 0.6


def test_failed_sanity_checks_stand_beside_the_comparison() -> None:
    finding = {"name": "huge-budget", "outcome": "failed", "message": "m", "anchor": "huge-budget"}
    (first, *_) = published()
    found = standing(first, [like_the_paper("cifar10", sanity=(finding,))])
    assert "sanity checks of ours failed: huge-budget" in " ".join(found.differences)


def test_the_tiny_model_is_told_that_nothing_is_comparable() -> None:
    text = "\n".join(lines_of_paper(against_paper([record("tiny-digits", 60, 100, 10, arch="tiny-clip")])))
    assert "Nothing published can be compared with these records" in text
    assert "Because the model is tiny-clip, theirs ViT-B-32:" in text
    assert "less AGFT" not in text
    assert text.count("\n- ") == len(published())


def test_what_was_never_obtained_is_a_dash() -> None:
    lines = lines_of_paper(against_paper([like_the_paper("dtd"), like_the_paper("cifar10")]))
    (row,) = [line for line in lines if line.startswith("| dtd ") and "40.00" in line]
    assert row == "| dtd | - | - | - | - | 40.00 [37.0, 43.1] | - |"


def test_the_page_fits_a_terminal() -> None:
    page, screen = "\n".join(lines_of_paper(against_paper([whole(name) for name in ZERO_SHOT_15]))), io.StringIO()
    Console(file=screen, width=80).print(Markdown(page))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:5] == ["caltech101", "21.27", "71.83", "73.34", "82.23"] for line in lines)
