"""Published numbers: `published.yaml`, one record a table."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import Field

from trainers.suite import SUITES
from trainers.units import Fraction, Frozen

__all__ = ["MEAN", "Published", "PublishedAttack", "published"]

MEAN = "mean"


class PublishedAttack(Frozen):
    """The attack of a published table; None for what was not obtained."""

    names: tuple[str, ...] = Field(description="what our evaluation calls it")
    steps: int | None = None
    step_size: Fraction | None = None
    eps: Fraction | None = None


class Published(Frozen):
    """One published table; `rows`: method -> dataset (or `mean`) -> percent."""

    id: str
    source: str
    what: str
    arch: str | None = Field(default=None, description="None where it was not noted")
    trained: str = Field(description="what the methods were fine-tuned on")
    sets: str = Field(description="a suite of ours with the same sets, or words")
    attack: PublishedAttack | None = Field(description="None: clean accuracy")
    protocol: str = Field(description="strict or paper, as ours are called, or `another`")
    read: str = Field(description="where the numbers were read, see the file")
    theirs: str | None = Field(default=None, description="how it was computed, where no record of ours can be the same")
    measured_on: dict[str, tuple[int, int, int, str]] = Field(
        default_factory=dict, description="dataset -> images, classes, pixels of a side, template"
    )
    never: str | None = Field(default=None, description="why it is compared with no record at all")
    note: str | None = None
    decimals: int = Field(default=2, description="how many the source gives")
    rows: dict[str, dict[str, float]]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The sets that its mean is over, if they are sets of ours."""
        return SUITES[self.sets][0].datasets if self.sets in SUITES else ()


@cache
def published() -> tuple[Published, ...]:
    """All tables, in the file's order; a table's own fields go before its source's."""
    text = resources.files("study").joinpath("published.yaml").read_text(encoding="utf-8")
    return tuple(_table(source, table) for source in yaml.safe_load(text) for table in source["tables"])


def _table(source: dict[str, Any], table: dict[str, Any]) -> Published:
    fields = {**source, **table, "id": f"{source['id']}: {table['id']}"}
    del fields["tables"]
    return Published.model_validate(fields)
