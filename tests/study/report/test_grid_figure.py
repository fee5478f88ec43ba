"""The heat maps of a study that searched two paths with choices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from study.figures import interactive, static
from study.report.content import content_of
from study.report.page import write_report
from study.report.space import grid
from study.spec.files import parse_study
from study.store.rows import StudyRow, TrialRow
from tests.support.epochs import epoch_record
from tests.support.study_files import minimal
from trainers.schema.records import Measurement

GRID = minimal(
    name="grid", sampler="{name: grid}", budget="{trials: 6}",
    search="""
  method.scale_ratio: {choices: [1.0, 0.4]}
  method.logit_scale: {of_model: {choices: [1.0, 1.8, 2.6]}}""",
)  # fmt: skip


def study_of(text: str) -> StudyRow:
    spec = parse_study(text, source="")
    baseline = Measurement(clean_accuracy=0.95, robust_accuracy=0.1, datasets={})
    return StudyRow("grid", spec, "", "run", "finished", 0, 0.0, 1, None, 0.0, baseline, None)


def trial(number: int, ratio: float, scale: float, robust: float, state: str = "complete") -> TrialRow:
    record = epoch_record(1, robust, 0.9, best_feasible=robust < 0.5)
    params = {"method.scale_ratio": ratio, "method.logit_scale": scale}
    return TrialRow(number, state, params, {}, 0, epochs=(record,))


def grid_of(text: str, trials: list[TrialRow]):
    return grid(content_of(study_of(text), trials))


def test_a_cell_is_the_full_length_trial_with_its_two_choices_in_rising_order():
    trials = [trial(0, 1.0, 1.0, 0.25), trial(1, 0.4, 2.6, 0.5), trial(2, 0.4, 1.0, 0.6, "pruned"),
              trial(3, 1.0, 1.0, 0.75)]  # fmt: skip
    clean, robust = grid_of(GRID, trials).panels
    assert robust.marks[0].values == ((None, None, 50.0), (25.0, None, None))  # of several, the first
    assert robust.marks[0].texts == (("-", "-", "50.0*"), ("25.0", "-", "-"))
    assert clean.marks[0].values == ((None, None, 90.0), (90.0, None, None))
    assert [text for _, text in robust.y.ticks] == ["0.4", "1"]
    assert [text for _, text in robust.x.ticks] == ["1", "1.8", "2.6"]
    assert (robust.marks[0].shade.low, robust.marks[0].shade.high) == (25.0, 50.0)


def test_the_papers_setting_and_no_calibration_are_marked_where_the_grid_has_them():
    trials = [trial(0, 1.0, 1.0, 0.3)]
    found = grid_of(GRID, trials)
    assert {frame.label: (frame.row, frame.column) for frame in found.panels[0].marks[1:]} == {
        "the paper's setting": (0, 1),
        "no calibration (1 and 1)": (1, 0),
    }
    assert list(found.labels()) == ["the paper's setting", "no calibration (1 and 1)"]
    other = grid_of(GRID.replace("[1.0, 0.4]", "[1.0, 0.7]"), trials)
    assert [frame.label for frame in other.panels[0].marks[1:]] == ["no calibration (1 and 1)"]


def test_the_figure_is_in_the_report_of_such_a_study_and_of_no_other(tmp_path):
    trials = [
        trial(n, r, s, 0.2 + 0.1 * n) for n, (r, s) in enumerate([(1.0, 1.0), (0.4, 1.0), (0.4, 1.8), (1.0, 2.6)])
    ]
    text = write_report(study_of(GRID), trials, tmp_path).read_text()
    assert "![Grid](grid.png)" in text
    assert (tmp_path / "grid.png").stat().st_size > 10_000
    assert (tmp_path / "grid.pdf").stat().st_size > 5_000
    assert 'id="grid"' in (tmp_path / "report.html").read_text()
    ranges = GRID.replace("{choices: [1.0, 0.4]}", "{low: 0.1, high: 1}").replace("sampler: {name: grid}\n", "")
    assert grid_of(ranges, trials) is None
    assert grid_of(GRID, []) is None


def test_a_grid_of_equal_accuracies_is_drawn_too():
    found = grid_of(GRID, [trial(0, 1.0, 1.0, 0.3)])
    static.draw(found).canvas.draw()
    (clean, robust), shapes = (interactive.plot(found)[key] for key in ("data", "layout"))
    assert (clean["zmin"], clean["zmax"]) == (89.0, 91.0)
    assert robust["z"] == [[None, None, None], [30.0, None, None]]
    assert len(shapes["shapes"]) == 4  # two frames in each panel


def test_of_several_learning_rates_a_cell_is_the_best_that_reaches_the_floors():
    text = GRID.replace("search:", "search:\n  train.optimizer.lr: {choices: [0.001, 0.01]}").replace(
        "trials: 6", "trials: 12"
    )
    trials = [trial(0, 1.0, 1.0, 0.3), trial(1, 1.0, 1.0, 0.4), trial(2, 1.0, 1.0, 0.6), trial(3, 0.4, 1.8, 0.7)]
    found = grid_of(text, [replace(each, params={**each.params, "train.optimizer.lr": 0.01}) for each in trials])
    assert found.panels[1].marks[0].texts == (("-", "70.0*", "-"), ("40.0", "-", "-"))
    assert [frame.label for frame in found.panels[0].marks[1:]] == ["the paper's setting", "no calibration (1 and 1)"]
    assert "best learning rate of each cell" in found.title


@pytest.mark.parametrize("dimensions", [1, 3])
def test_one_or_three_searched_paths_are_no_heat_map(dimensions):
    lines = GRID.replace("sampler: {name: grid}\n", "")
    if dimensions == 1:
        lines = "\n".join(line for line in lines.splitlines() if "logit_scale" not in line)
    else:
        lines = lines.replace("search:", "search:\n  attack.steps: {choices: [1, 2]}")
    assert grid_of(lines, [trial(0, 1.0, 1.0, 0.3)]) is None
