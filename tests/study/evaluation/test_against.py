"""Two evaluations on the same images, and the command that sets one beside another or beside published numbers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from study.cli.main import main
from study.errors import UserError
from study.evaluation.against import against_other, lines_of_other, read_records
from tests.support.records import record


def written(folder: Path, rights: list[bool], **changes: Any) -> str:
    made = record("dtd", len(rights), len(rights), sum(rights), **changes)
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


def test_a_set_differs_only_after_the_correction_for_all_tests_of_the_page(tmp_path) -> None:
    """6 of 8 images that only the one has right: p = 2 / 2^6 alone; the clean test, p = 1, makes it twice that."""
    one = written(tmp_path / "one", [True] * 8)
    other = written(tmp_path / "other", [True, True] + [False] * 6)
    clean, robust = (found := against_other(one, other))["rows"]
    assert (robust["p"], robust["p_holm"]) == ({"dtd": 2 / 2**6}, {"dtd": 2 * 2 / 2**6})
    assert (clean["p"], clean["p_holm"]) == ({"dtd": 1.0}, {"dtd": 1.0})
    text = "\n".join(lines_of_other(found))
    assert "| 6 | 0 | none |" in text
    assert "| pgd-20 | 1/255 | dtd | 6 | 0 | 0.031 | 0.062 |" in text
    assert "for the 2 tests of this page" in text


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


def invoked(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["report", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_writes_the_screen_a_file_or_json(tmp_path) -> None:
    address = written(tmp_path / "one", [True, False, True, True], arch="tiny-clip")
    code, text, _ = invoked(f"{address}/", "--against", "paper")
    assert code == 0
    assert text.startswith("# m (tiny-clip) beside published numbers")
    assert json.loads(invoked(address, "--against", "paper", "--json")[1])["model"]["arch"] == "tiny-clip"
    page = tmp_path / "page.md"
    assert invoked(address, "--against", "paper", "--out", str(page))[1].strip() == str(page)
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "--against", "paper"], "nowhere: no record of an evaluation is here"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], words: str) -> None:
    code, _, errors = invoked(*arguments)
    assert code == 2
    assert words in errors
    assert len(errors.splitlines()) == 1
