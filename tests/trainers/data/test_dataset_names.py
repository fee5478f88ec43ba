"""A dataset's name in file names and metric names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data import DATASETS, safe_name

LEGAL = re.compile(r"[A-Za-z0-9_.-]{1,80}")  # of MLflow's letters those that a file may have as well
NAMES = st.one_of(
    st.text(min_size=1),
    st.text("ab-_./: ", min_size=1, max_size=6).map("folder:{}".format),
    st.text("aA-.0", min_size=1, max_size=4),
    st.text(min_size=1).map(safe_name),
)


@pytest.mark.parametrize("name", DATASETS)
def test_names_of_the_table_stay_as_they_are(name):
    assert safe_name(name) == name


@given(NAMES)
def test_any_name_becomes_a_legal_one(name):
    found = safe_name(name)
    assert LEGAL.fullmatch(found)
    assert found[0] not in ".-"


@given(NAMES, NAMES)
def test_two_names_never_become_one(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)
    if one != other:
        assert safe_name(one).lower() != safe_name(other).lower(), "nor where files do not tell case"


def test_the_readable_end_of_a_folder_stays():
    assert safe_name("folder:/data/my pets/") == "folder-data-my-pets-" + safe_name("folder:/data/my pets/")[-16:]
    long = safe_name(f"folder:/{'x' * 300}/pets")
    assert "x-pets-" in long
    assert safe_name("folder:/data/\udcff").startswith("folder-data-"), "a file name need not be text"
    assert safe_name("..") == "set-" + safe_name("..")[-16:]
