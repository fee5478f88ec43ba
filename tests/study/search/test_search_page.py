"""The examples of the search page are parts of valid studies, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.plan.study import remarks
from study.spec.config import SAMPLERS, STOPPING, BudgetConfig, PriorConfig, SamplerConfig, SchedulerConfig
from study.spec.document import Loader
from study.spec.files import check_study

PAGE = (Path(__file__).parents[3] / "docs" / "search.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
REST: dict[str, Any] = {
    "name": "example",
    "model": {"arch": "tiny-clip", "pretrained": "bundled"},
    "method": {"name": "agft"},
    "data": {
        "train": "tiny-color-shapes",
        "dev": ["tiny-shapes"],
        "confirm": ["tiny-colors"],
        "final": ["tiny-letters"],
    },
    "budget": {"trials": 40},
}


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_is_part_of_a_valid_study_and_has_the_effect_that_it_is_shown_for(example):
    spec, problems = check_study({**REST, **yaml.load(example, Loader=Loader)}, {})
    assert problems == []
    assert spec is not None
    assert remarks(spec) == []


def test_every_sampler_verdict_and_field_is_on_the_page():
    for name in [*SAMPLERS, *STOPPING]:
        assert f"| `{name}` |" in PAGE, name
    for record in (SamplerConfig, SchedulerConfig, PriorConfig, BudgetConfig):
        for field in record.model_fields:
            assert re.search(rf"\b{field}\b", PAGE), field
