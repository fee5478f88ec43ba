"""Whole histories of promotions of one model name, judged by the gates: how often is a champion replaced wrongly?

The full measurement, with 1,000 histories of each kind, is `tests/bench/promotion_histories.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.promotion_histories import AS_THEY_COME, GATES, NO_EVIDENCE, Told, history

COUNT, SIZES = 100, (250, 250)


def told(kind: str, *, k: int = 3, count: int = COUNT, gates=AS_THEY_COME, counted: bool = True) -> list[Told]:
    return [
        history(np.random.default_rng([7, place]), kind, k=k, gates=gates, sizes=SIZES, looks=20, counted=counted)
        for place in range(count)
    ]


def wrong(found: list[Told]) -> float:
    return sum(each.wrong > 0 for each in found) / len(found)


@pytest.mark.parametrize("kind", ["equal", "worse"])
def test_in_at_most_one_of_twenty_histories_a_champion_is_replaced_wrongly(kind):
    assert wrong(told(kind, gates=GATES[kind])) <= 0.05


def test_without_counting_looks_and_candidates_it_would_be_many():
    assert wrong(told("equal", count=40, counted=False)) > 0.2


def test_a_policy_that_asks_for_no_evidence_replaces_the_champion_nearly_always():
    assert wrong(told("equal", count=10, gates=NO_EVIDENCE)) > 0.9


def test_a_challenger_that_is_much_better_wins_and_does_so_again():
    """4 points on 8,000 images, at looks 3, 8, 13 and 18: what a look has won, the next may spend."""
    found = [
        history(np.random.default_rng([7, place]), "mixed", k=2, gates=AS_THEY_COME, sizes=(4000, 4000))
        for place in range(8)
    ]
    assert sum(each.taken for each in found) / sum(each.chances for each in found) > 0.8
    assert wrong(found) == 0
