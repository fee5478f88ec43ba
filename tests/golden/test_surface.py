"""Every command, its help, every field of users' files and every public name are those of the lists in tests/golden."""

from __future__ import annotations

from typing import Annotated, Literal, Union

import pytest
from pydantic import BaseModel, Field

from tests.bench.surface import (
    command_differences,
    commands,
    field_differences,
    fields,
    from_text,
    names,
    schema_lines,
    stored_commands,
    stored_fields,
    stored_names,
    to_text,
)

AGAIN = "if this is meant: python tests/bench/surface.py --write"


def test_every_command_and_its_help_are_those_of_the_list() -> None:
    found = command_differences(stored_commands(), commands())
    assert not found, "\n".join([*found, AGAIN])


def test_the_fields_of_users_files_are_those_of_the_list() -> None:
    found = field_differences(stored_fields(), fields())
    assert not found, "\n".join([*found, AGAIN])


def test_the_names_that_other_code_may_import_are_those_of_the_list() -> None:
    found = field_differences(stored_names(), names())
    assert not found, "\n".join([*found, AGAIN])


def test_a_command_that_came_went_or_changed_is_named() -> None:
    stored = {"agft": "a\nb", "agft run": "runs", "agft old": "old"}
    found = {"agft": "a\nb", "agft run": "runs\n  --fast", "agft new": "new"}
    assert command_differences(stored, found) == [
        "agft new: is new", "agft old: is gone", "agft run: another help\n+  --fast",
    ]  # fmt: skip
    assert from_text(to_text(stored)) == stored


class Inner(BaseModel):
    """Text that no user sees."""

    name: Literal["inner"] = "inner"
    rate: float = Field(0.5, gt=0, le=1, description="a rate")


class Renamed(BaseModel):
    name: Literal["inner"] = "inner"
    rate: float = Field(0.5, gt=0, le=1)


class Other(BaseModel):
    name: Literal["other"] = "other"
    sizes: tuple[int, ...] = Field((1,), min_length=1)


class File(BaseModel):
    part: Annotated[Union[Inner, Other], Field(discriminator="name")]  # noqa: UP007
    number: int | None = None


class Moved(BaseModel):
    part: Annotated[Union[Other, Renamed], Field(discriminator="name")]  # noqa: UP007
    number: int | None = None


class Changed(BaseModel):
    part: Annotated[Union[Inner, Other], Field(discriminator="name")]  # noqa: UP007
    number: int | None = 3


def test_a_field_is_a_line_with_its_type_its_default_and_its_limits() -> None:
    assert schema_lines(File.model_json_schema()) == [
        "(file): open to any key",
        "number: integer | null default=null",
        'part: object inner | object other required',
        'part<inner>.name: string const="inner" default="inner"',
        "part<inner>.rate: number exclusiveMinimum=0 maximum=1 default=0.5",
        "part<inner>: open to any key",
        'part<other>.name: string const="other" default="other"',
        "part<other>.sizes: array minItems=1 default=[1]",
        "part<other>.sizes[]: integer",
        "part<other>: open to any key",
    ]  # fmt: skip


@pytest.mark.parametrize(("model", "changed"), [(Moved, []), (Changed, ["number"])])
def test_only_what_users_write_makes_a_difference(model: type[BaseModel], changed: list[str]) -> None:
    lines = field_differences(schema_lines(File.model_json_schema()), schema_lines(model.model_json_schema()))
    assert sorted({line[2:].partition(":")[0] for line in lines}) == changed
