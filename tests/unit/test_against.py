"""Our numbers beside published ones: what is comparable, what differs, and nothing that was never obtained."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from study.against import against_other, against_paper, lines_of_other, lines_of_paper, read_records
from study.errors import UserError
from study.published import published, standing
from tests.records import record
from trainers.data import DATASETS, ZERO_SHOT_15

PAPER = {"steps": 20, "step_size": 1 / 255}


def like_the_paper(name: str, robust: int = 400, **changes: Any) -> Any:
    return record(name, 600, 1000, robust, **{"settings": PAPER, "protocol": "paper", **changes})


def table(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["tables"] if each["id"] == name)


def test_published_numbers_are_those_that_were_read() -> None:
    tables = {each.id: each for each in published()}
    assert tables["agft-1"].rows["AGFT"]["caltech101"] == 82.23
    assert tables["agft-1"].rows["AGFT"]["mean"] == 46.57
    assert tables["agft-1"].rows["TeCoA"]["imagenet"] == 41.29
    assert tables["agft-2"].rows["AGFT"] == {"cifar10": 86.72, "stl10": 95.72, "mean": 61.35}
    assert tables["robustvlm-b32-eps4"].rows == {"TeCoA": {"mean": 23.6}, "FARE": {"mean": 21.9}}
    assert sum(value for name, value in tables["agft-1"].rows["AGFT"].items() if name != "mean") == pytest.approx(
        480.69
    )


def test_every_published_set_is_one_of_ours_and_every_number_a_percentage() -> None:
    for each in published():
        for rows in each.rows.values():
            assert set(rows) <= {*DATASETS, "mean"}, each.id
            assert all(0 <= value <= 100 for value in rows.values())


def test_the_papers_own_procedure_is_compared_in_points() -> None:
    found = against_paper([like_the_paper("cifar10", 700), like_the_paper("caltech101", 800)])
    first = table(found, "agft-1")
    assert first["barriers"] == []
    assert first["points_above_agft"] == {"cifar10": -1.72, "caltech101": -2.23}
    assert "protocol" not in " ".join(first["differences"])
    assert "fp16 autocast" in " ".join(first["differences"])
    assert len(first["missing_sets"]) == 13
    assert "mean" not in first["ours"]


def test_a_mean_needs_every_set() -> None:
    found = against_paper([like_the_paper(name, 400) for name in ZERO_SHOT_15])
    assert table(found, "agft-1")["ours"]["mean"]["accuracy"] == pytest.approx(0.4)
    assert table(found, "agft-1")["points_above_agft"]["mean"] == pytest.approx(-6.57)
    assert table(found, "agft-2")["ours"]["mean"]["accuracy"] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": "strict"}, "ours is protocol strict"),
        ({"settings": {"steps": 50, "step_size": 1 / 255}}, "ours has 50 steps, theirs 20"),
        ({"settings": {"steps": 20}}, "our step is 0.25/255, theirs 1/255"),
        ({"images": 10_000}, "class-stratified sample: cifar10 1,000 of 10,000"),
        ({"resolution": 224}, "attacks cifar10 at 224 pixels"),
    ],
)
def test_what_differs_is_said(changes: dict[str, Any], words: str) -> None:
    found = table(against_paper([like_the_paper("cifar10", **{"resolution": 32, **changes})]), "agft-1")
    assert found["barriers"] == []
    assert words in " ".join(found["differences"])
    same = table(against_paper([like_the_paper("cifar10", resolution=32)]), "agft-1")
    assert words not in " ".join(same["differences"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "ViT-B-16"}, "the model is ViT-B-16, theirs ViT-B-32"),
        ({"eps": 2 / 255}, "pgd was not made at 1/255"),
        ({"attack": "cw", "settings": {}}, "no attack pgd was made"),
    ],
)
def test_what_cannot_be_compared_is_not_subtracted(changes: dict[str, Any], words: str) -> None:
    found = table(against_paper([like_the_paper("cifar10", **changes)]), "agft-1")
    assert found["barriers"] == [words]
    assert found["ours"] == found["points_above_agft"] == {}


def test_failed_sanity_checks_stand_beside_the_comparison() -> None:
    finding = {"name": "huge-budget", "outcome": "failed", "message": "m", "anchor": "huge-budget"}
    (first, *_) = published()
    found = standing(first, [like_the_paper("cifar10", sanity=(finding,))])
    assert "sanity checks of ours failed: huge-budget" in " ".join(found.differences)


def test_the_tiny_model_is_told_that_nothing_is_comparable() -> None:
    text = "\n".join(lines_of_paper(against_paper([record("tiny-digits", 60, 100, 10, arch="tiny-clip")])))
    assert "Nothing published can be compared with these records" in text
    assert "the model is tiny-clip, theirs ViT-B-32" in text
    assert "less AGFT" not in text


def test_what_was_never_obtained_is_a_dash() -> None:
    lines = lines_of_paper(against_paper([like_the_paper("dtd"), like_the_paper("cifar10")]))
    (row,) = [line for line in lines if line.startswith("| dtd ") and "40.00" in line]
    assert row == "| dtd | - | - | - | - | 40.00 [37.0, 43.1] | - |"


def written(folder: Path, rights: list[bool], **changes: Any) -> str:
    made = record("dtd", 4, 4, sum(rights), **changes)
    (folder / "records" / "dtd").mkdir(parents=True)
    (folder / "records" / "dtd" / "pgd-20.json").write_text(made.model_dump_json())
    rows = [f"{image},0,1/255,0,{int(not right)}" for image, right in enumerate(rights)]
    text = "\n".join(["index,label,eps,clean_prediction,adversarial_prediction", *rows]) + "\n"
    (folder / "records" / "dtd" / "pgd-20.csv.gz").write_bytes(gzip.compress(text.encode()))
    return str(folder)


def test_two_models_are_compared_on_the_same_images(tmp_path) -> None:
    one = written(tmp_path / "one", [True, True, True, False])
    other = written(tmp_path / "other", [True, False, False, False])
    clean, robust = against_other(one, other)["rows"]
    assert (clean["eps"], clean["mean"]) == (None, 0.0)
    assert (robust["eps"], robust["mean"], robust["only_one"]) == ("1/255", 0.5, {"dtd": 2})
    assert "+50.00" in "\n".join(lines_of_other(against_other(one, other)))


def test_other_images_are_not_paired(tmp_path) -> None:
    one = written(tmp_path / "one", [True, True, True, False])
    other = written(tmp_path / "other", [True, False, False, False], seed=1)
    with pytest.raises(UserError, match="other images or another protocol"):
        against_other(one, other)


def test_a_folder_without_records_and_a_broken_record_are_named(tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"no record of an evaluation is here \(looked for records/DATASET/ATTACK.json\)"
    ):
        read_records(str(tmp_path))
    address = written(tmp_path, [True])
    (tmp_path / "records" / "dtd" / "pgd-20.json").write_text("{}")
    with pytest.raises(UserError, match=r"records/dtd/pgd-20\.json: not the record of an evaluation"):
        read_records(address)
