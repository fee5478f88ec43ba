"""What a model says about images, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.evaluation.readings import calibration_error, overlap, read, top_classes


def test_readings_of_three_classes_by_hand() -> None:
    cosines = torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.5, -0.5]])
    found = read(10 * cosines, torch.tensor([0, 0]), 10.0)
    assert found.prediction.tolist() == [0, 1]
    assert found.margin.tolist() == pytest.approx([1.0, -5.0])
    share = math.exp(3) / (math.exp(3) + math.exp(1) + math.exp(2))
    assert found.confidence.tolist() == pytest.approx([share, math.exp(5) / (1 + math.exp(5) + math.exp(-5))])
    assert found.top_cosine.tolist() == pytest.approx([0.3, 0.5])
    assert found.mean_cosine.tolist() == pytest.approx([0.2, 0.0], abs=1e-7)
    assert found.overlap.isnan().all()


def test_overlap_is_intersection_over_union_of_the_top_five() -> None:
    mine = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    others = torch.tensor([[4, 3, 2, 1, 0], [5, 6, 7, 8, 9], [3, 4, 5, 6, 7]])
    assert overlap(mine, others).tolist() == pytest.approx([1.0, 0.0, 2 / 8])


def test_with_fewer_than_five_classes_all_of_them_are_the_top() -> None:
    assert top_classes(torch.tensor([[0.1, 0.3, 0.2]])).tolist() == [[1, 2, 0]]
    assert top_classes(torch.arange(9.0)[None]).tolist() == [[8, 7, 6, 5, 4]]
    found = read(torch.tensor([[0.1, 0.3]]), torch.tensor([0]), 1.0, torch.tensor([[0, 1]]))
    assert found.overlap.tolist() == [1.0]


def test_calibration_error_by_hand() -> None:
    """Two images in the bin of 0.9, one right: |1/2 - 0.9| * 2/3; one in the bin of 0.4, right: 0.6 * 1/3."""
    found = calibration_error(torch.tensor([0.9, 0.9, 0.4]), torch.tensor([True, False, True]))
    assert found == pytest.approx(0.4 * 2 / 3 + 0.6 / 3)


def test_a_calibrated_model_has_no_calibration_error_and_a_sure_wrong_one_has_all() -> None:
    right = torch.arange(10) < 7
    assert calibration_error(torch.full((10,), 0.7), right) == pytest.approx(0, abs=1e-6)
    assert calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 1.0


def test_bins_are_fifteenths_closed_above() -> None:
    """1/15 and 2/15 lie in different bins: errors of opposite sign do not cancel; in one bin they would."""
    apart = calibration_error(torch.tensor([1 / 15, 2 / 15 + 1e-6]), torch.tensor([True, False]))
    assert apart == pytest.approx((14 / 15 + 2 / 15) / 2, abs=1e-5)
    together = calibration_error(torch.tensor([0.54, 0.59]), torch.tensor([True, False]))
    assert together == pytest.approx(abs(1 - 0.54 - 0.59) / 2, abs=1e-6)
