"""What the report of a comparison says about made-up records, and the page in docs about its own."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from study.comparison.figures import figures
from study.comparison.file import parse_comparison
from study.comparison.record import conclude
from study.comparison.report import markdown, write_comparison
from study.comparison.tables import attack_text
from study.plan.cost import update_passes
from tests.study.comparison.test_compare import FILE
from trainers.data import DATASETS
from trainers.objectives import METHODS
from trainers.schema.training import AttackConfig

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "2 x 1 eps, eps 1/255"),
        ({"eps": 4 / 255, "step_size": 1 / 255, "steps": 10, "momentum": 0.9}, "10 x 1/255, eps 4/255, momentum 0.9"),
        ({"norm": "l2", "eps": 0.5}, "2 x 1 eps, l2 eps 0.5"),
        ({"norm": "l2", "eps": 0.5, "step_size": 0.125, "restarts": 2}, "2 x 0.125, l2 eps 0.5, restarts 2"),
    ],
)
def test_an_attack_is_told_with_its_norm_and_in_its_units(fields, text):
    assert attack_text(AttackConfig(**fields).model_dump(mode="json")) == text


def made_up(robust: dict[str, list[float]]) -> dict[str, Any]:
    """A record with these robust accuracies by method and seed; clean accuracies 0.8."""

    def measured(value: float) -> dict[str, Any]:
        score = {
            "clean_accuracy": 0.8,
            "robust_accuracy": value,
            "correct": 80,
            "robust": int(100 * value),
            "total": 100,
        }
        return {"clean_accuracy": 0.8, "robust_accuracy": value, "datasets": {"tiny-letters": {"4/255": score}}}

    comparison = parse_comparison(FILE, source="compare.yaml")
    spec = comparison.searches["agft"]
    setting = spec.model_dump(
        mode="json", include={"model", "data", "train", "evaluate", "goal", "sampler", "scheduler", "resources", "seed"}
    )
    trial = {
        "trial": 0, "state": "complete", "failure": None, "best_epoch": 2, "feasible": True,
        "clean_accuracy": 0.9, "robust_accuracy": 0.3, "params": {"train.optimizer.lr": 3e-4},
        "device_seconds": 60.0, "images_per_second": 300.0,
    }  # fmt: skip
    return conclude(
        {
            "name": "two",
            "created_ms": 1_700_000_000_000,
            "reference": "agft",
            "seeds": [101, 102, 103],
            "setting": {**setting, "trials": 3},
            "unmodified": {"dev": measured(0.1), "final": measured(0.1)},
            "methods": {
                label: {
                    "method": "agft",
                    "study": f"two-{label}",
                    "attack": spec.attack.model_dump(mode="json"),
                    "passes": update_passes({"name": "agft"}, spec.attack.model_dump(mode="json")),
                    "search": {"space": spec.search, "trials": [trial] * 3, "device_seconds": 180.0},
                    "chosen": {**trial, "config": spec.base()},
                    "runs": [
                        {**trial, "seed": 101 + place, "weights": {"sha256": "0"}, "final": measured(value)}
                        for place, value in enumerate(values)
                    ],
                    "code": [{"revision": "a" * 40, "dirty": False}],
                }
                for label, values in robust.items()
            },
            "provenance": {"cpus": 2, "python": "3.11", "packages": {"torch": "2.14"}},
        }
    )


def test_the_report_says_what_the_seeds_separate_and_what_they_do_not():
    record = made_up({"agft": [0.30, 0.31, 0.32], "better": [0.40, 0.40, 0.43], "alike": [0.25, 0.36, 0.33]})
    text = markdown(record)
    assert re.search(r"better against agft: .*robust accuracy is 10.0 points higher", text)
    assert re.search(r"alike against agft: .*the seeds do not separate the robust accuracies", text)
    assert "| agft | 3 | 80.0 ± 0.0 | 31.0 ± 1.0 |" in text
    assert "| unmodified CLIP |  | 80.0 | 10.0 |" in text
    assert "Intervals shown: 2," in text, "not those of the clean accuracies, the same with every seed"


def test_the_report_says_why_there_is_no_interval():
    text = markdown(made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]}))
    assert "robust accuracy: no interval, the difference being +10.0 points with every one of 3 seeds" in text
    assert "points higher" not in text
    two = markdown(made_up({"agft": [0.30, 0.31], "b": [0.40, 0.42]}))
    assert "robust accuracy: no interval, 2 seeds in common being too few (in mean +10.5 points)" in two
    one = markdown(made_up({"agft": [0.30, 0.31], "b": [0.40]}))
    assert "robust accuracy: no interval, 1 seed in common being too few (+10.0 points)" in one
    assert "Intervals shown: 0." in two


def test_attacks_that_differ_in_their_norm_alone_are_not_the_same_attack():
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]})
    assert "did not train against the same attack" not in markdown(record)
    record["methods"]["b"]["attack"]["norm"] = "l2"
    assert "did not train against the same attack" in markdown(record)


def changed_form(name: str, searched: dict[str, Any], **fields: Any) -> str:
    """The report where `b` is this method, with these searched fields and these values in its chosen trial."""
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]})
    own = record["methods"]["b"]
    own["method"], own["search"]["space"] = name, searched
    own["chosen"]["config"]["method"] = METHODS[name](name=name, **fields).model_dump(mode="json")
    return markdown(record)


@pytest.mark.parametrize(
    ("searched", "fields", "text"),
    [
        ({"method.feature_weight": {"choices": [0, 20]}}, {"feature_weight": 20}, "searched, chosen 20"),
        ({"method.label_weight": {"low": 0, "high": 1}}, {}, "`label_weight` searched, chosen the paper's 0"),
        ({}, {"clean_weight": 0.5}, "`clean_weight` 0.5"),
        ({}, {"attack_on": "total", "label_weight": 1}, "`label_weight` 1; `attack_on` total"),
    ],
)
def test_agft_with_optional_terms_is_named_so(searched, fields, text):
    report = changed_form("agft", searched, **fields)
    first_lines = report.partition("## Result")[0]
    assert "**b is AGFT with our optional terms**" in first_lines
    assert text in first_lines
    assert "**agft is" not in first_lines
    assert "| b: AGFT with our optional terms | 3 |" in report


def test_the_papers_forms_are_not_remarked_on_whatever_their_hyperparameters():
    space = {"method.scale_ratio": {"low": 0.3, "high": 1.2}, "method.logit_scale": {"low": 10, "high": 200}}
    assert "**b is" not in changed_form("agft", space, scale_ratio=0.7, logit_scale=90)
    assert "**b is" not in changed_form("pmg-aft", {"method.clean_weight": {"low": 0, "high": 2}}, clean_weight=0.3)
    assert "**b is FARE with a term" in changed_form("fare", {"method.clean_weight": {"low": 0, "high": 0.8}})
    assert "| b | 3 |" in changed_form("agft", space, scale_ratio=0.7)


def test_who_searched_the_logit_scale_is_said_in_the_first_lines():
    scale = {"method.logit_scale": {"of_model": {"low": 0.5, "high": 2.0}}}
    first_lines = changed_form("tecoa", scale).partition("## Result")[0]
    assert "`method.logit_scale`: searched by b; held fixed by agft." in first_lines
    assert "searched by none; held fixed by agft; not a field of b." in changed_form("fare", {})


def test_whoever_is_ahead_is_reported_the_same_way():
    one, other = (
        {"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.40, 0.43]},
        {"agft": [0.40, 0.40, 0.43], "b": [0.3, 0.31, 0.32]},
    )
    assert "robust accuracy is 10.0 points higher" in markdown(made_up(one))
    assert "robust accuracy is 10.0 points lower" in markdown(made_up(other))


def test_failed_and_infeasible_runs_are_told():
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]})
    changed = copy.deepcopy(record)
    changed["methods"]["b"]["runs"][0]["final"] = None
    changed["methods"]["b"]["runs"][1]["feasible"] = False
    changed["methods"]["b"]["chosen"] = {**changed["methods"]["b"]["chosen"], "feasible": False}
    text = markdown(conclude(changed))
    assert "seeds 101 failed" in text
    assert "(!) b: on the dev sets, where floors decide (), 1 of 2 seeds miss (seeds 102)" in text
    assert "No trial of b reached the floors" in text
    assert "| b (!) | 2 |" in text


def test_the_report_is_written_with_its_figures_and_a_machine_readable_record(tmp_path):
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.40, 0.43]})
    path = write_comparison(record, tmp_path)
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert (tmp_path / target).stat().st_size > 0, target
    assert json.loads((tmp_path / "comparison.json").read_text())["groups"][0]["differences"]["b"]["robust_accuracy"][
        "separated"
    ]


def test_a_difference_that_only_its_own_interval_separates_is_not_called_one():
    """Four intervals: 0.95 becomes 0.9875 for each, and the t of two degrees of freedom from 4.3 to 8.9."""
    runs = {"agft": [0.30, 0.31, 0.32], "b": [0.33, 0.35, 0.37], "c": [0.28, 0.36, 0.30], "d": [0.1, 0.2, 0.4]}
    record = made_up({**runs, "e": [0.2, 0.2, 0.5]})
    found = record["groups"][0]["differences"]["b"]["robust_accuracy"]
    assert found["alone"][0] > 0 > found["simultaneous"][0]
    assert not found["separated"]
    assert record["intervals"] == {"number": 4, "each": 0.9875, "together": 0.95, "by": "Bonferroni"}
    text = markdown(record)
    assert "b against agft" in text
    assert "points higher" not in text
    assert "only by itself, as if nothing else had been compared, the interval would leave out 0: [+1.5, +6.5]" in text
    low, high = (100 * end for end in found["simultaneous"])
    assert f"+4.0 [{low:+.1f}, {high:+.1f}] |" in text, "the table shows the corrected interval"


def with_floor(record: dict[str, Any], clean: dict[int, float]) -> dict[str, Any]:
    """The goal has a floor of 80 % of the unmodified CLIP's 80.0, and b these clean accuracies by seed."""
    record["setting"]["goal"]["subject_to"] = {"clean_accuracy": ">= clip * 0.8"}
    for run in record["methods"]["b"]["runs"]:
        for score in run["final"]["datasets"]["tiny-letters"].values():
            score["clean_accuracy"] = clean[run["seed"]]
    return conclude(record)


def test_who_misses_the_floor_on_the_final_sets_is_marked_beside_the_table_with_numbers():
    made = {"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.43]}
    text = markdown(with_floor(made_up(made), {101: 0.60, 102: 0.62, 103: 0.73}))
    assert "| b (!) | 3 |" in text
    assert "| agft | 3 |" in text
    [line] = [line for line in text.splitlines() if line.startswith("- (!)")]
    assert line == (
        "- (!) b: clean accuracy 65.0 on the final sets is in mean not below the goal's floor >= clip * 0.8, "
        "there 64.0 (clip: 80.0), missed by 2 of 3 seeds; on the dev sets, where floors decide (clean accuracy 64.0), "
        "0 of 3 seeds miss."
    )
    assert "clean accuracy 61.0 on the final sets is below" in markdown(
        with_floor(made_up(made), {101: 0.60, 102: 0.61, 103: 0.62})
    )
    assert "(!)" not in markdown(with_floor(made_up(made), {101: 0.7, 102: 0.7, 103: 0.71}))


def two_kinds() -> dict[str, Any]:
    """Two sets, of which the second shows held-out classes only; on it every method has half the robust accuracy."""
    record = made_up({"agft": [0.30, 0.32, 0.31], "b": [0.40, 0.44, 0.42]})
    for run in [record["unmodified"], *(run for method in record["methods"].values() for run in method["runs"])]:
        sets = run["final"]["datasets"]
        sets["tiny-wide"] = copy.deepcopy(sets["tiny-letters"])
        for score in sets["tiny-wide"].values():
            score["robust_accuracy"] /= 2
    return record


def test_held_out_classes_stand_apart_from_whole_sets_where_there_are_both():
    record = conclude({**two_kinds(), "held_out": ["tiny-wide"]})
    whole, apart = record["groups"]
    assert (whole["title"], whole["sets"], apart["title"], apart["sets"]) == (
        "whole sets", ["tiny-letters"], "held-out classes", ["tiny-wide"],
    )  # fmt: skip
    assert whole["methods"]["b"]["robust_accuracy"]["mean"] == pytest.approx(0.42)
    assert apart["methods"]["b"]["robust_accuracy"]["mean"] == pytest.approx(0.21)
    assert record["intervals"]["number"] == 2, "all of the page, whatever table they stand in"
    text = markdown(record)
    assert text.index("## Result: whole sets") < text.index("| b | 3 | 80.0 ± 0.0 | 42.0 ± 2.0 |")
    assert text.index("## Result: held-out classes") < text.index("| b | 3 | 80.0 ± 0.0 | 21.0 ± 1.0 |")
    accuracy, sets, _ = figures(record)
    assert [panel.title for panel in accuracy.panels] == ["whole sets", "held-out classes"]
    assert sets.title.endswith("held-out classes: tiny-wide")


@pytest.mark.parametrize("held_out", [[], ["tiny-letters", "tiny-wide"]])
def test_sets_of_one_kind_are_one_table(held_out):
    record = conclude({**two_kinds(), "held_out": held_out})
    [group] = record["groups"]
    assert (group["title"], group["sets"]) == ("final sets", ["tiny-letters", "tiny-wide"])
    assert group["methods"]["b"]["robust_accuracy"]["mean"] == pytest.approx(0.315)
    assert "## Result\n" in markdown(record)
    assert "held-out" not in markdown(record)


def test_what_is_held_out_is_said_by_the_datasets_own_row():
    assert not any(entry.held_out for name, entry in DATASETS.items() if name in ("tiny-letters", "real-digits"))


def test_the_page_is_what_its_record_says():
    record = json.loads((DOCS / "comparison.json").read_text())
    assert conclude(copy.deepcopy(record)) == record
    assert (DOCS / "comparison.md").read_text() == markdown(record)
