"""A study that searches for calibration: its front, its floors, what is shown of it, its audit, and its promotion."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from study.driver.messages import epoch_line
from study.errors import UserError
from study.promotion.candidates import check_weights, floors_of, preference_of, standard_of
from study.promotion.claims import audited
from study.report.content import content_of
from study.report.page import markdown_of
from study.report.results import curves, tradeoff
from study.results.ranking import best_trial, front_metrics, pareto_front, trial_table
from study.results.rights import measurement, rights_of
from study.store import tables as t
from study.store.archive import stored_in
from tests.support.light import light_study
from tests.support.simulated import Simulation, write_archive
from trainers.evaluation.readings import READINGS, Readings
from trainers.evaluation.verdicts import Verdicts
from trainers.schema.attacks import PGD
from trainers.schema.suite import AttackAt

BOTH = {"metrics": ["robust_accuracy", "clean_calibration"], "subject_to": {"robust_calibration": ">= clip * 1.2"}}


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    goal = {"goal": BOTH, "sampler": {"name": "random"}, "scheduler": {"name": "none"}, "budget": {"trials": 12}}
    return Simulation(light_study("calibrated", **goal)).run()


def test_the_front_is_of_the_goals_metrics_and_the_best_trial_reaches_the_floor(simulation: Simulation) -> None:
    rows = list(simulation.rows.values())
    points = {row.number: tuple(map(row.last.at_best, BOTH["metrics"])) for row in rows if row.last}  # type: ignore[call-overload]
    beaten = {n for n, own in points.items() if any(
        other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in points.values()
    )}  # fmt: skip
    front = pareto_front(rows, simulation.spec.goal.names)
    assert len({points[row.number] for row in front}) == len(front) > 2
    assert {points[row.number] for row in front} == {points[n] for n in points.keys() - beaten}
    robust = [row.last.best_robust_accuracy for row in front if row.last]
    assert robust == sorted(robust)
    assert front_metrics(["clean_accuracy"]) == ("clean_accuracy", "robust_accuracy")
    best, floor = best_trial(rows, simulation.goal), simulation.goal.at_least["robust_calibration"]
    assert floor == pytest.approx(simulation.baseline.robust_calibration * 1.2)  # type: ignore[operator]
    reaching = [n for n in points if (simulation.rows[n].last.best_robust_calibration or 0) >= floor]  # type: ignore[union-attr]
    assert 0 < len(reaching) < len(points), "the floor decides something"
    assert best is not None
    assert sum(points[best.number]) == max(sum(points[n]) for n in reaching)


def test_tables_figures_and_lines_show_it_and_no_other_studys_do(simulation: Simulation, tmp_path: Path) -> None:
    stored = stored_in(write_archive(simulation.content(), tmp_path / "a.json"))
    content = content_of(stored.study, stored.trials)
    assert content.plane == ("robust_accuracy", "clean_calibration")
    assert (content.measure, content.calibrations) == (
        "mean of robust accuracy and clean calibration", ("clean_calibration", "robust_calibration"),
    )  # fmt: skip
    [panel] = tradeoff(content).panels
    assert [panel.x.label, panel.y.label] == ["robust accuracy (%)", "clean calibration (%)"]
    assert [each.y.label for each in curves(content).panels][2:] == ["clean calibration (%)", "robust calibration (%)"]
    table = trial_table(stored.trials, simulation.goal)
    page = markdown_of(content, table, ())
    assert "| model | clean | robust | clean calibration | robust calibration |" in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("| ") and "complete" in line}
    assert widths == {page.splitlines()[-len(table) - 2].count("|")}, "as many cells as headings"
    record = stored.trials[0].epochs[0]
    said = epoch_line(0, record, 3, simulation.spec.goal.calibrations)
    assert f"clean calibration {record.clean_calibration:6.1%}" in said
    plain = Simulation(light_study("plain", budget={"trials": 2})).run()
    stored = stored_in(write_archive(plain.content(), tmp_path / "b.json"))
    content = content_of(stored.study, stored.trials)
    assert (content.calibrations, content.plane) == ((), ("clean_accuracy", "robust_accuracy"))
    assert "calibration" not in markdown_of(content, trial_table(stored.trials, plain.goal), ())


def test_an_audit_follows_it_from_the_whole_numbers(simulation: Simulation, tmp_path: Path) -> None:
    content = simulation.content()
    assert audited(stored_in(write_archive(content, tmp_path / "a.json"))).follows
    for field, rule in (("clean_gap", "clean_calibration"), ("robust_gap", "robust_calibration")):
        changed = copy.deepcopy(content)
        scores = changed["rows"][t.epochs.name][5]["record"]["datasets"]
        next(iter(next(iter(scores.values())).values()))[field] += 1 << 38
        first = audited(stored_in(write_archive(changed, tmp_path / f"{field}.json"))).first
        assert first is not None
        assert first.path == rule


def test_no_promotion_weighs_it_and_a_floor_of_it_holds(simulation: Simulation) -> None:
    spec = simulation.spec
    with pytest.raises(UserError, match=r"clean_calibration may be searched for .* no promotion decides by it"):
        check_weights(spec, preference_of(spec, None))
    wanted = preference_of(spec, "max robust with clean_calibration >= clip - 0.02")
    check_weights(spec, wanted)
    assert floors_of(spec, wanted) == {"robust_calibration": ">= clip * 1.2", "clean_calibration": ">= clip - 0.02"}
    clip = {"robust_calibration": 0.5, "clean_calibration": 0.9}
    standard = standard_of(spec, wanted, clip)
    assert dict(standard.weights) == {"robust_accuracy": 1.0}
    assert dict(standard.at_least) == pytest.approx({"robust_calibration": 0.6, "clean_calibration": 0.88})


def test_of_several_attacks_an_image_is_as_sure_as_under_the_one_that_left_it_least() -> None:
    """By hand: image 0 is fooled by the second attack alone, image 1 by none, image 2 is wrong anyway."""

    def readings(prediction: list[int], margin: list[float], confidence: list[float]) -> Readings:
        rest = {name: torch.zeros(3) for name in READINGS}
        return Readings(**{**rest, "prediction": torch.tensor(prediction), "margin": torch.tensor(margin),
                           "confidence": torch.tensor(confidence)})  # fmt: skip

    def verdicts(*attacked: list[float]) -> Verdicts:
        label, clean = torch.tensor([0, 0, 0]), readings([0, 0, 1], [1, 1, -1], [0.75, 0.5, 0.25])
        margin = attacked[0]
        found = readings([0 if each > 0 else 1 for each in margin], margin, attacked[1])
        stacked = found.each(lambda values: values[None])
        return Verdicts("set", (4 / 255,), torch.arange(3), label, clean, stacked)

    entry = AttackAt(attack=PGD(), eps=(4 / 255,))
    one, other = verdicts([2.0, 1.0, -1.0], [0.75, 0.625, 0.25]), verdicts([-0.5, 3.0, -1.0], [0.5, 0.875, 0.125])
    result = measurement({"set": rights_of([(entry, one), (entry, other)])})
    assert result["clean_calibration"] == pytest.approx(1 - (0.25 + 0.5 + 0.25) / 3), "three bins, 0.75, 0.5 and 0.25"
    bins: Counter[float] = Counter()  # 0.5 wrong, 0.625 right, 0.25 wrong: three bins again
    for sure, right in ((0.5, 0), (0.625, 1), (0.25, 0)):
        bins[np.ceil(15 * sure)] += right - sure
    assert result["robust_calibration"] == pytest.approx(1 - sum(map(abs, bins.values())) / 3)
    again = measurement({"set": rights_of([(entry, other), (entry, one)])})
    assert again["robust_accuracy"] == result["robust_accuracy"] == pytest.approx(1 / 3)
