"""The heat maps of a study that searched two paths with choices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from study.report.page import write_report
from study.report.png import draw_grid, grid_cells, marked_cells
from study.spec.files import parse_study
from study.store.rows import StudyRow, TrialRow
from tests.support.study_files import minimal

GRID = minimal(
    name="grid", sampler="{name: grid}", budget="{trials: 6}",
    search="""
  method.scale_ratio: {choices: [1.0, 0.4]}
  method.logit_scale: {of_model: {choices: [1.0, 1.8, 2.6]}}""",
)  # fmt: skip


def study_of(text: str) -> StudyRow:
    spec = parse_study(text, source="")
    baseline = {"clean_accuracy": 0.95, "robust_accuracy": 0.1, "datasets": {}}
    return StudyRow("grid", spec, "", "run", "finished", 0, 0.0, 1, None, 0.0, baseline, None)


def trial(number: int, ratio: float, scale: float, robust: float, state: str = "complete") -> TrialRow:
    record = {
        "epoch": 1, "best_epoch": 1, "clean_accuracy": 0.9, "robust_accuracy": robust, "best_feasible": robust < 0.5,
        "best_clean_accuracy": 0.9, "best_robust_accuracy": robust, "feasible": True,
        "train_loss": 1.0, "timestamp_ms": 0,
    }  # fmt: skip
    params = {"method.scale_ratio": ratio, "method.logit_scale": scale}
    return TrialRow(number, state, params, {}, 0, epochs=(record,))


def grid_of(study: StudyRow):
    first, second = study.spec.dimensions()
    return first, second


def test_a_cell_is_the_full_length_trial_with_its_two_choices_in_rising_order():
    trials = [trial(0, 1.0, 1.0, 0.3), trial(1, 0.4, 2.6, 0.4), trial(2, 0.4, 1.0, 0.6, "pruned")]
    cells = grid_cells(grid_of(study_of(GRID)), trials)
    assert {cell: record["best_robust_accuracy"] for cell, record in cells.items()} == {(1, 0): 0.3, (0, 2): 0.4}


def test_the_papers_setting_and_no_calibration_are_marked_where_the_grid_has_them():
    study = study_of(GRID)
    assert dict(marked_cells(study, grid_of(study))) == {
        "the paper's setting": (0, 1),
        "no calibration (1 and 1)": (1, 0),
    }
    other = study_of(GRID.replace("[1.0, 0.4]", "[0.5, 0.7]"))
    assert marked_cells(other, grid_of(other)) == []


def test_the_figure_is_in_the_report_of_such_a_study_and_of_no_other(tmp_path):
    trials = [
        trial(n, r, s, 0.2 + 0.1 * n) for n, (r, s) in enumerate([(1.0, 1.0), (0.4, 1.0), (0.4, 1.8), (1.0, 2.6)])
    ]
    study = study_of(GRID)
    text = write_report(study, trials, tmp_path).read_text()
    assert "![grid](grid.png)" in text
    assert (tmp_path / "grid.png").stat().st_size > 10_000
    ranges = GRID.replace("{choices: [1.0, 0.4]}", "{low: 0.1, high: 1}").replace("sampler: {name: grid}\n", "")
    assert not draw_grid(study_of(ranges), trials, tmp_path / "none.png")
    assert not draw_grid(replace(study), [], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("dimensions", [1, 3])
def test_one_or_three_searched_paths_are_no_heat_map(dimensions, tmp_path):
    lines = GRID.replace("sampler: {name: grid}\n", "")
    if dimensions == 1:
        lines = "\n".join(line for line in lines.splitlines() if "logit_scale" not in line)
    else:
        lines = lines.replace("search:", "search:\n  attack.steps: {choices: [1, 2]}")
    assert not draw_grid(study_of(lines), [trial(0, 1.0, 1.0, 0.3)], tmp_path / "none.png")
