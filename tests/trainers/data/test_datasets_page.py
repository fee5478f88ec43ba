"""docs/datasets.md says what the table says."""

from __future__ import annotations

from pathlib import Path

from trainers.data.page import steps, table

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"


def test_the_page_has_the_table_and_the_steps_of_the_code():
    page = PAGE.read_text()
    for part in (table(), steps()):
        assert part in page, "docs/datasets.md: put the output of `python -m trainers.data.page` in its place"
