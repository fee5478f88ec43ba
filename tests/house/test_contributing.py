"""Where a change goes: every file of the list is there, and the words to look for stand in it."""

from __future__ import annotations

import re

import pytest

from tests.house import modules

PAGE = modules.ROOT / "docs" / "contributing.md"
ROWS = re.findall(r"^\| (\d+\. .*?) \| (.*) \| (.*)\|$", PAGE.read_text(), flags=re.M)


def test_there_are_twenty():
    assert [int(change.partition(".")[0]) for change, _, _ in ROWS] == list(range(1, 21))


@pytest.mark.parametrize(("change", "files", "words"), ROWS, ids=[change for change, _, _ in ROWS])
def test_the_words_to_look_for_stand_in_the_files(change, files, words):
    links = re.findall(r"\]\(([^)#]+)\)", files)
    paths = [(PAGE.parent / link).resolve() for link in links]
    assert all(path.exists() for path in paths), links
    texts = [path.read_text() for path in paths if path.is_file()]
    for word in re.findall(r"`([^`]+)`", words):
        assert any(word in text for text in texts), f"{word}: in none of {links}"
