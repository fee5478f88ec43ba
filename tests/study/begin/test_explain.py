"""Every field is explained, and editors take by the schema what the reader takes, and refuse what it refuses."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from study.begin.explain import every_field, explain
from study.begin.schema import KINDS, schema_of
from study.cli.main import main
from study.cli.words import KINDS as NAMED
from study.errors import UserError
from study.spec.document import read_mapping
from tests.bench.surface import FILES, fields

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "study" / "recipes").glob("**/*.yaml"))
STUDY = {"name": "x", "method": {"name": "agft"}, "budget": {"trials": 1},
         "data": {"train": "tiny-wide", "dev": "a", "confirm": ["b"], "final": ["c"]}}  # fmt: skip


def test_every_field_of_every_file_is_explained_with_a_meaning_and_a_type() -> None:
    assert tuple(KINDS) == NAMED
    for kind in KINDS:
        every = list(every_field(kind))
        assert not [each.path for each in every if not each.meaning or not each.type]
        for path in {each.path.replace("*", "mine") for each in every}:
            assert explain(path), path


def test_the_fields_explained_are_the_fields_that_are_read() -> None:
    """Those of the list that is frozen: paths without items, alternatives and keys of the writer's own."""
    explained = {each.path for kind in ("study", "suite") for each in every_field(kind)}
    for kind in FILES:
        prefix = "" if kind == "study file" else "suite."
        for line in (line for line in fields() if line.startswith(kind)):
            path = line.removeprefix(kind).strip().partition(": ")[0]
            plain = ".".join(part.partition("<")[0].partition("[")[0] for part in path.split("."))
            if not path.startswith("(") and "*" not in path and not line.endswith(("closed", "any key")):
                assert f"{prefix}{plain}" in explained, line


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("attack.eps", ["1/255", "from 0 to 1000", "section 4.1", "fare-paper"]),
        ("method.agft.scale_ratio", ["gamma", "above 0 to 10", "arXiv:2603.29410"]),
        ("method.logit_scale", ["(of agft)", "(of tecoa)"]),
        ("suite.attacks.attack.pgd.steps", ["20", "whole number"]),
        ("compare.seeds", ["required"]),
        ("search.train.optimizer.lr", ["peak learning rate", "low", "choices"]),
        ("", ["budget", "promote"]),
    ],
)
def test_a_field_is_explained_in_a_terminal(path: str, said: list[str]) -> None:
    done = CliRunner().invoke(main, ["explain", path] if path else ["explain"])
    assert done.exit_code == 0, done.output
    assert all(word in done.output for word in said), done.output


def test_a_field_that_does_not_exist_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(UserError, match=r"method\.logit_scal: no such field .* did you mean 'method\.logit_scale'"):
        explain("method.logit_scal")


def problems(kind: str, raw: object) -> list[str]:
    found = jsonschema.Draft202012Validator(schema_of(kind)).iter_errors(raw)
    return [error.json_path for error in found]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_what_its_schema_asks_for(path: Path) -> None:
    raw, _, _ = read_mapping(path.read_text(), source=path.name, keys="")
    kind = "compare" if "methods" in raw else "suite" if "datasets" in raw else "study"
    assert problems(kind, raw) == []


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, []),
        ({"attack": {"eps": "4/255", "step_size": {"of_eps": 0.5}}}, []),
        ({"attack": {"epsilon": "4/255"}}, ["$.attack"]),
        ({"attack": {"eps": "four"}}, ["$.attack.eps"]),
        ({"attack": {"eps": -1}}, ["$.attack.eps"]),
        ({"search": {"attack.eps": {"choices": ["1/255"]}, "method.scale_ratio": {"low": 0.1, "high": 1}}}, []),
        ({"search": {"attack.epss": {"choices": ["1/255"]}}}, ["$.search"]),
        ({"method": {"name": "agft", "scale_ratoi": 1}}, ["$.method"]),
        ({"method": {"name": "tecoa"}, "alternatives": {"name": "agft"}}, []),
    ],
)  # fmt: skip
def test_editors_take_what_we_take_and_mark_what_we_refuse(change: dict[str, object], wrong: list[str]) -> None:
    assert problems("study", {**STUDY, **change}) == wrong


def test_a_preset_stands_for_a_method() -> None:
    without = {key: value for key, value in STUDY.items() if key != "method"}
    assert problems("study", without) == ["$"]
    assert problems("study", {**without, "preset": "agft-paper"}) == []


def test_editors_find_the_schema_by_a_line_that_names_a_file_of_the_home(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["schema", "study", "--line"], env={"AGFT_HOME": str(tmp_path)})
    place = done.output.strip().removeprefix("# yaml-language-server: $schema=file://")
    assert Path(place).read_text().count('"scale_ratio"')
