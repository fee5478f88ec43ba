"""Studies from Python: typed, and the same as the command line says."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from study.api import Study, studies
from study.errors import UserError
from study.results.facts import Trial
from study.results.ranking import ranked
from study.spec.files import parse_study
from study.store.store import StudyStore
from tests.support.studies import BASELINE, SPEC, synthetic_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    synthetic_study(folder, name="demo-001", finished=True)
    return folder


@pytest.fixture
def study(home: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("AGFT_HOME", str(home))
    monkeypatch.delenv("AGFT_STUDY_DB", raising=False)
    return Study.open("demo-001")


def test_a_study_is_found_by_its_name_and_an_unknown_one_is_answered_with_the_nearest(study):
    assert studies() == ["demo-001"]
    assert (study.name, study.state, study.spec.budget.trials) == ("demo-001", "finished", 24)
    assert study.unmodified == BASELINE
    with pytest.raises(UserError, match=r"no study 'demo-01'; did you mean 'demo-001'\?"):
        Study.open("demo-01")


def test_trials_are_typed_frozen_and_complete(study):
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(24))
    assert all(isinstance(trial, Trial) for trial in trials)
    with pytest.raises(FrozenInstanceError):
        trials[0].robust_accuracy = 1.0  # type: ignore[misc]
    assert [e.epoch for e in trials[0].curve] == [1, 2, 3, 4, 5, 6]
    assert trials[0].checkpoint == "s3://agft/studies/x/trials/0/best"
    assert [len(trial.attempts) for trial in trials][:10] == [1] * 9 + [2]


def test_the_best_and_the_order_are_those_of_the_study(study):
    goal = study.spec.goal.resolve(BASELINE)
    assert [t.number for t in study.ranked()] == [row.number for row in ranked(study.store.trials(), goal)]
    assert study.best == study.ranked()[0]
    assert study.best.robust_accuracy == max(t.robust_accuracy for t in study.trials if t.feasible and
                                             t.state == "complete")  # fmt: skip
    assert study.best.number in [trial.number for trial in study.pareto()]


def test_a_frame_has_one_plain_row_a_trial_with_its_parameters(study):
    frame = study.frame()
    assert len(frame) == 24
    json.dumps(frame)
    assert frame[0]["method.scale_ratio"] == 0.4
    assert frame[0]["attempts"] == 1
    assert "train.optimizer.momentum" not in next(r for r in frame if r["train.optimizer.name"] == "adamw")


def test_a_dataframe_has_the_trials_numbers_and_a_notebook_shows_the_best_first(study):
    table = study.dataframe()
    assert list(table.index) == list(range(24))
    assert table["robust_accuracy"].max() == max(t.robust_accuracy for t in study.trials if t.robust_accuracy)
    shown = study._repr_html_()
    assert re.findall(r'data-trial="(\d+)"', shown)[0] == str(study.best.number)
    assert "14 more: <code>study.dataframe()</code>" in shown
    assert "<script" not in shown


def test_a_study_is_stopped_and_extended_from_python_as_from_a_terminal(tmp_path):
    synthetic_study(tmp_path, name="small", trials=2)
    small = Study.open("small", home=tmp_path)
    small.store.release(small.store.load().token, "paused")
    assert "a budget of 5 trials now" in small.extend(trials=3)
    assert small.spec.budget.trials == 5
    assert "is stopped" in small.stop()
    assert small.state == "stopped"
    assert [trial.number for trial in small.optuna_study().trials] == [0, 1]
    with pytest.raises(UserError, match="no trial 7 with a checkpoint"):
        small.evaluate(7)


def test_a_report_is_written_where_it_is_wanted_and_says_what_the_content_says(study, tmp_path):
    path = study.report(tmp_path / "here")
    assert path == tmp_path / "here" / "report.html"
    found = json.loads((tmp_path / "here" / "report.json").read_text())
    assert found["best"] == study.best.number
    assert found["importances"][0]["trials"] == study.importances()[0].trials


def test_a_new_study_has_no_best_yet(tmp_path):
    store = StudyStore(f"sqlite:///{tmp_path / 'studies.db'}", "fresh")
    store.create(parse_study(SPEC.replace("NAME", "fresh"), source=""))
    fresh = Study.open("fresh", home=tmp_path)
    assert (fresh.best, fresh.trials, fresh.ranked(), fresh.pareto(), fresh.unmodified) == (None, [], [], [], None)
    assert fresh.state == "queued"


def test_a_wrong_study_file_is_refused_before_anything_is_started(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: wrong\n")
    with pytest.raises(UserError, match="method"):
        Study.run(wrong, home=tmp_path)
    assert not (tmp_path / "studies.db").exists()


def test_the_example_of_the_page_runs(study, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "api.md").read_text()
    first = re.search(r"```python\n(.*?)```", page, flags=re.S)
    assert first is not None
    (tmp_path / "example.py").write_text(first[1])
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    assert str(study.best.number) in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()
