"""What a plan says of image folders that are there and whose pictures are not all taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.plan.study import first_lines, search_plan
from study.spec.files import parse_study
from tests.support.pictures import drawn
from tests.support.study_files import minimal


@pytest.mark.parametrize("other", ["red-cube", "red_cube", "RED CUBE", "red  cube", "red_cube_"])
def test_a_plan_says_what_was_taken_what_was_left_out_and_which_prompts_are_equal(other: str, tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for name in ("Red cube", other, "ball"):
        (root / name).mkdir(parents=True)
        drawn("RGB", (9, 9), 0).save(root / name / "0.png")
    (root / "ball/0.txt").write_text("no picture")
    spec = parse_study(minimal().replace("train: tiny-color-shapes", f"train: folder:{root}"), source="x")
    assert spec.data.train == f"folder:{root}"
    said = "\n".join(first_lines(search_plan(spec, tmp_path)))
    assert "data.train: 3 pictures of 3 classes taken; left out: 1 *.txt" in said
    equal = " = ".join(map(repr, sorted(("Red cube", other))))
    assert f"data.train: 2 classes cannot be told apart, their prompts are equal: {equal}" in said
    assert "data.train: 3 of 3 classes have fewer than 10 pictures" in said
