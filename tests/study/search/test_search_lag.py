"""What docs/search-quality.md says of the rule's price: losses seed by seed, and tables that can be filled again."""

from __future__ import annotations

import pytest

from tests.bench.search_lag import AT, LAGS, compared, filled, rows
from tests.bench.search_replay import Replay


def found(*values: float, idle: float = 0.0) -> Replay:
    """A search that finds these after 10, 20 full trials."""
    times = (0.0, 10.0, 20.0)
    return Replay(times, (0.0, *values), values[-1], len(values), 1, 0, idle)


def test_a_loss_is_what_the_same_seed_finds_more_without_the_rule():
    free, ruled = [found(0.2, 0.3), found(0.1, 0.3)], [found(0.2, 0.2, idle=0.1), found(0.1, 0.1)]
    case = compared(ruled, free, unit_seconds=1.0)
    assert case["idle"] == 0.05
    assert (case["complete"], case["pruned"]) == (2, 1)
    assert [loss["mean"] for loss in case["loss"]] == pytest.approx([0.0, 0.15])
    assert (case["loss"][1]["low"], case["loss"][1]["high"]) == pytest.approx((0.1, 0.2))
    assert case["value"] == pytest.approx([0.15, 0.15])
    assert "loss" not in compared(free, None, 1.0)


def test_the_page_takes_its_tables_again_and_again_and_keeps_its_words():
    case = compared([found(0.2, 0.2, idle=0.1)] * 2, [found(0.2, 0.3)] * 2, unit_seconds=1.0)
    scene = {"methods": {"TPE": {"lags": {str(lag): case for lag in LAGS}}}}
    assert list(rows(scene, AT[1]))[-1] == f"| TPE |{' 10.00 (10.00 to 10.00) |' * len(LAGS)}"
    assert list(rows(scene, None))[-1] == f"| TPE |{' 10.0 |' * len(LAGS)}"
    page = "before\n<!-- lag: one 32 -->\n<!-- end -->\nbetween\n<!-- lag: one idle -->\n<!-- end -->\nafter\n"
    once = filled(page, {"scenes": {"one": scene}})
    assert filled(once, {"scenes": {"one": scene}}) == once
    assert once.startswith("before\n<!-- lag: one 32 -->\n| search |")
    assert once.endswith("10.0 |\n\n<!-- end -->\nafter\n")
