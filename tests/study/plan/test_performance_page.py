"""The page of figures is what its command makes of the records."""

from __future__ import annotations

from tests.bench.performance import FIGURES, PAGE, newest, page


def test_the_page_is_made_from_the_records_and_says_a_command_and_a_commit_for_each():
    assert PAGE.read_text() == page(), "PYTHONPATH=. python tests/bench/performance.py"
    records = page().partition("## Records")[2]
    for figure in FIGURES:
        if file := newest(figure.record):
            (row,) = [line for line in records.splitlines() if file.name in line]
            assert figure.command in row
