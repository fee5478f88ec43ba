"""Looks at confirm sets on real S3: counted once each, whatever database a study is in, and paid from one budget."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from infra import storage
from study.models.head import Head, Move, model_names, model_prefix, read_head, swap_head, versions
from study.models.looks import BUDGET, claim_look, level_of, read_looks, share


def test_the_looks_of_a_name_add_up_to_the_budget():
    spent = sum(share(number) for number in range(1, 10_000))
    assert spent == pytest.approx(BUDGET, rel=1e-3)
    assert spent < BUDGET
    assert [share(number) for number in (1, 2, 3)] == pytest.approx([BUDGET / 2, BUDGET / 6, BUDGET / 12])


def test_the_level_of_a_look_that_replaced_the_champion_goes_to_the_next_one():
    assert level_of(3, before=None) == share(3)
    assert level_of(3, before=0.01) == share(3) + 0.01


@pytest.fixture
def bucket(service_environment: Any) -> str:
    return str(service_environment.bucket)


def look(bucket: str, name: str, facts: str, hypotheses: int = 2) -> Any:
    return claim_look(bucket, name, {"candidates": [facts]}, hypotheses=hypotheses)


def test_the_same_look_is_counted_once_and_another_one_spends_less(bucket):
    first = look(bucket, "looks-same", "a")
    assert (first.number, first.level, first.hypotheses) == (1, share(1), 2)
    assert first.each == share(1) / 2
    assert look(bucket, "looks-same", "a") == first
    second = look(bucket, "looks-same", "b")
    assert (second.number, second.level) == (2, share(2))
    assert look(bucket, "looks-same", "a") == first, "also after others"
    assert look(bucket, "looks-same", "a", hypotheses=3).number == 3, "from among more is another look"
    assert [record["number"] for record in read_looks(bucket, "looks-same")] == [1, 2, 3]
    assert look(bucket, "looks-other", "a").number == 1, "every model name has its own budget"


def test_looks_at_once_get_different_numbers_and_the_same_one_gets_one(bucket):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: look(bucket, "looks-race", each), [*"abcd", *"aaaa"]))
    assert sorted({each.number for each in found}) == [1, 2, 3, 4]
    assert len({each.number for each in (found[0], *found[4:])}) == 1


def replaced(bucket: str, name: str, **facts: Any) -> None:
    head, etag = read_head(bucket, name)
    before = head if etag else Head()
    swap_head(bucket, name, (head.champion or 0) + 1, before, etag, Move("promotion", "why", facts))


def test_a_look_whose_evidence_moved_the_champion_hands_its_level_on(bucket):
    name = "looks-handed"
    first = look(bucket, name, "a")
    replaced(bucket, name, look=first.number, evidence=True)
    second = look(bucket, name, "b")
    assert second.level == share(2) + share(1)
    third = look(bucket, name, "c")
    assert third.level == share(3), "the second one replaced nobody"
    replaced(bucket, name, look=third.number, evidence=False)  # forced, or without evidence
    assert look(bucket, name, "d").level == share(4)


def test_a_record_that_is_no_champion_is_left_alone(bucket):
    """What lies beside HEAD is of the model, and of no version."""
    look(bucket, "looks-only", "a")
    assert storage.get_json(f"{model_prefix(bucket, 'looks-only')}/looks/000001.json") is not None
    assert "looks-only" not in model_names(bucket)
    assert versions(bucket, "looks-only") == {}
