"""A study's report: what its figures, page and JSON say of a study that has everything a study can have."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from studies import BASELINE, FAILED, LOST, RUNNING, TWICE, synthetic_study

from study.report import png as report_figures
from study.report import png as report_space
from study.report import png as report_timeline
from study.report.content import Axis, Content, content_of
from study.report.live import LiveReport, attach
from study.report.page import FIGURES, PICTURES, figures, html_of, write_report
from study.report.png import at_once
from study.report.space import NOT_SET, fraction, ticks
from study.results.facts import trials_of
from study.results.ranking import best_so_far, best_trial, pareto_front
from study.store.store import StudyStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return synthetic_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def content(store: StudyStore) -> Content:
    return content_of(store.load(), store.trials(), links={"study": "http://mlflow/#/s", "15": "http://mlflow/#/t"})


@pytest.fixture(scope="module")
def folder(store: StudyStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(store.load(), store.trials(), tmp_path_factory.mktemp("report")).parent


# --- what counts ---------------------------------------------------------------------------------------------------


def test_the_front_has_full_length_trials_only_and_nothing_beats_one_of_it(store):
    rows = store.trials()
    front, complete = pareto_front(rows), [row for row in rows if row.state == "complete"]
    assert {row.state for row in front} == {"complete"}
    accuracies = [(r.last.best_clean_accuracy, r.last.best_robust_accuracy) for r in front]
    assert accuracies == sorted(accuracies)
    assert [robust for _, robust in accuracies] == sorted((r for _, r in accuracies), reverse=True)
    for row in complete:
        own = row.last.best_clean_accuracy, row.last.best_robust_accuracy
        beaten = any(c >= own[0] and r >= own[1] and (c, r) != own for c, r in accuracies)
        assert beaten != (own in accuracies), row.number
    fast = next(row for row in rows if row.state == "pruned")
    perfect = fast.last.model_copy(update={"best_clean_accuracy": 1.0, "best_robust_accuracy": 1.0})
    rows[fast.number] = replace(fast, epochs=(perfect,))
    assert [row.number for row in pareto_front(rows)] == [row.number for row in front]


def test_the_best_so_far_only_rises_and_ends_at_the_best(store):
    study, rows = store.load(), store.trials()
    goal = study.spec.goal.resolve(BASELINE)
    steps = best_so_far(rows, goal)
    assert len(steps) == sum(row.finished for row in rows)
    values = [best.last.best_robust_accuracy for _, best in steps if best]
    assert values == sorted(values)
    assert steps[-1][1] == best_trial(rows, goal)


def test_the_papers_defaults_and_warm_starts_are_recognised_by_their_parameters(store):
    marks = {t.number: t.reference for t in trials_of(store.load(), store.trials()) if t.reference}
    assert marks == {0: "paper", 1: "warm start"}


def test_intervals_come_from_the_number_of_dev_images(store):
    study, rows = store.load(), store.trials()
    before = trials_of(study, rows)[0]
    assert before.robust_error == pytest.approx(1.96 * 0.5 / 600**0.5, rel=0.05)  # two sets of 300, near one half
    for record in rows[0].epochs:
        for scores in record["datasets"].values():
            for score in scores.values():
                score["total"] *= 4
    assert trials_of(study, rows)[0].robust_error == pytest.approx(before.robust_error / 2)


# --- figures -------------------------------------------------------------------------------------------------------


def test_the_trade_off_draws_the_floor_the_unmodified_model_and_the_front(content):
    figure = report_figures.tradeoff(content)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    for label in ("Pareto front", "unmodified CLIP", "floor of clean accuracy", "the paper's defaults",
                  "warm start", f"best: trial {content.best}, 95 % of its dev images",
                  "stopped early (not in the front)"):  # fmt: skip
        assert label in labels
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    assert low < content.floors["clean_accuracy"] < BASELINE.clean_accuracy < high


def test_a_log_axis_a_choice_and_a_missing_value_have_their_places():
    log = Axis("train.optimizer.lr", "lr", log=True, low=1e-4, high=1e-2)
    choice = Axis("attack.eps", "eps", choices=(1 / 255, 2 / 255, 4 / 255))
    assert fraction(log, 1e-3) == pytest.approx(0.5)
    assert [fraction(choice, value) for value in choice.choices] == [0, 0.5, 1]
    assert [text for _, text in ticks(choice)] == ["1/255", "2/255", "4/255"]
    assert fraction(log, None) == NOT_SET < 0
    assert [text for _, text in ticks(log)] == ["0.0001", "0.001", "0.01"]


@pytest.mark.parametrize("axis", [Axis("a.b", "b", low=0.0, high=0.95), Axis("a.b", "b", log=True, low=3e-5, high=9e-3),
                                  Axis("a.b", "b", choices=("x",)), Axis("a.b", "b", low=1, high=3)])  # fmt: skip
def test_ticks_rise_stay_inside_and_tell_the_ends(axis):
    places = [place for place, _ in ticks(axis)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    if not axis.choices:
        assert (places[0], places[-1]) == (0, 1)
        assert min(b - a for a, b in itertools.pairwise(places)) > 0.05


def test_a_conditional_parameter_that_a_trial_lacks_is_shown_as_not_set(content):
    lacking = [t.number for t in content.trials if "train.optimizer.momentum" not in t.params]
    assert lacking
    for figure in (report_space.parallel(content), report_space.slices(content)):
        texts = [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_xticklabels()]]
        assert "not set" in texts


def test_the_time_line_has_a_bar_for_every_attempt_and_counts_them_at_once(content):
    bars = content.timeline
    assert len(bars) == sum(len(trial.attempts) for trial in content.trials)
    outcomes = {(bar.trial, bar.outcome) for bar in bars}
    assert {(TWICE, "paused"), (LOST, "lost"), *((number, "running") for number in RUNNING)} <= outcomes
    assert all((number, "failed") in outcomes for number in FAILED)
    assert all(bar.ended_ms >= bar.started_ms for bar in bars)
    running = at_once(bars)
    assert max(count for _, count in running) == 3  # three slots
    assert running[-1][1] == 0
    report_timeline.timeline(content)


def test_every_figure_is_drawn_of_a_study_without_any_trial(tmp_path):
    empty = synthetic_study(tmp_path, name="empty", trials=0)
    path = write_report(empty.load(), empty.trials(), tmp_path / "report")
    assert "0 of" in path.read_text()
    nothing = content_of(empty.load(), [])
    for draw in (report_figures.tradeoff, report_figures.curves, report_figures.progress, report_space.parallel,
                 report_space.slices, report_space.importance_bars, report_timeline.timeline):  # fmt: skip
        draw(nothing).canvas.draw()
    assert set(figures(nothing)) == set(FIGURES)
    html_of(nothing)


def test_figures_are_drawn_outside_the_main_thread_too(content):
    failures: list[BaseException] = []

    def draw() -> None:
        try:
            report_figures.tradeoff(content).canvas.draw()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draw) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == []


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_folder_has_markdown_page_json_and_every_picture(folder):
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.html", "report.json", *PICTURES}
    text = (folder / "report.md").read_text()
    for name in PICTURES:
        assert f"]({name})" in text
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_the_json_is_the_typed_content(folder, content):
    found = json.loads((folder / "report.json").read_text())
    assert found["best"] == content.best
    assert [trial["number"] for trial in found["trials"]] == [trial.number for trial in content.trials]
    assert found["pareto"] == list(content.pareto)
    assert set(found) == set(Content.__dataclass_fields__)


def test_links_that_a_driver_knew_are_kept_for_this_very_study_only(store, content, tmp_path):
    study, rows = store.load(), store.trials()[:3]
    write_report(study, rows, tmp_path, links={"study": "http://mlflow/#/s"}, known=content.importances)
    write_report(study, rows, tmp_path, known=content.importances)
    assert json.loads((tmp_path / "report.json").read_text())["links"] == {"study": "http://mlflow/#/s"}
    write_report(replace(study, created_ms=1), rows, tmp_path, known=content.importances)
    assert json.loads((tmp_path / "report.json").read_text())["links"] == {}
    (tmp_path / "report.json").write_text("[not ours")
    write_report(study, rows, tmp_path, known=content.importances)
    assert json.loads((tmp_path / "report.json").read_text())["study"] == study.name


class Page(HTMLParser):
    """Elements, addresses and the table's text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data") and value]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = tag

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] += data


def test_the_page_needs_no_network(content):
    page = Page(html_of(content))
    assert not {"link", "img", "iframe", "object", "base"} & set(page.tags)
    outside = [address for address in page.addresses if not address.startswith("#")]
    assert outside == ["http://mlflow/#/s", "http://mlflow/#/t"]  # links to click, nothing to load


def test_the_table_has_every_trial_the_best_first(content):
    page = Page(html_of(content))
    assert page.rows[0][:5] == ["trial", "state", "epochs", "robust %", "clean %"]
    assert [int(row[0]) for row in page.rows[1:]] != sorted(t.number for t in content.trials)
    assert sorted(int(row[0]) for row in page.rows[1:]) == [trial.number for trial in content.trials]
    best = content.trial(content.best)
    assert page.rows[1][0] == str(best.number)
    assert page.rows[1][3] == f"{100 * best.robust_accuracy:.1f}"


def test_whatever_a_machine_or_a_user_wrote_cannot_become_markup(store, content, tmp_path):
    study, rows = store.load(), store.trials()
    evil = "</script><img src=x onerror=alert(1)>{{7}}$title ${js}"
    rows[5] = type(rows[5])(**{**vars(rows[5]), "stop_reason": evil})
    rows[3].params["train.optimizer.name"] = "sgd"
    links = {"study": "javascript:alert(1)", "5": 'http://x/"onmouseover="alert(1)'}
    wicked = content_of(study, rows, links=links, known=content.importances)
    text = html_of(wicked)
    page, clean = Page(text), Page(html_of(content))
    assert page.tags.count("img") == clean.tags.count("img") == 0
    assert page.tags.count("script") == clean.tags.count("script") == 3
    assert evil in next(row[-1] for row in page.rows if row[0] == "5")  # shown as it was written
    assert not any("javascript:" in address for address in page.addresses)
    data = re.search(r'id="report-data">(.*?)</script>', text, flags=re.S)
    assert data is not None
    assert "<" not in data[1]
    hovers = json.dumps(json.loads(data[1]))
    assert "<img" not in hovers
    markdown = write_report(study, rows, tmp_path, known=content.importances).read_text()
    assert "<img" not in markdown


def test_the_browsers_figures_are_plain_finite_json(content):
    plots = figures(content)
    json.dumps(plots, allow_nan=False)
    assert set(plots) == set(FIGURES)
    parallel = plots["parallel"]["data"][0]
    assert {len(dimension["values"]) for dimension in parallel["dimensions"]} == {len(content.in_state("complete"))}
    assert len(parallel["dimensions"]) == len(content.axes) + 2


# --- while the study runs ------------------------------------------------------------------------------------------


class Sent:
    """A tracker that only notes what it is told: what the live report asks of one."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def run_page(self, key: str) -> str | None:
        return f"http://mlflow/#/{key}"

    def log_file(self, key: str, path: Path, artifact_path: str) -> None:
        assert path.stat().st_size > 0
        self.files.append(artifact_path)


def test_a_live_report_attaches_what_changed_and_nothing_twice(store, tmp_path):
    tracker = Sent()
    live = LiveReport(store, tracker, tmp_path, every_seconds=0.0)  # type: ignore[arg-type]
    live.wake()
    live.close()
    assert live.drawn == 1  # the second look found nothing new
    assert sorted(tracker.files) == sorted(f"report/{path.name}" for path in tmp_path.iterdir())
    assert "http://mlflow/#/" in (tmp_path / "report.html").read_text()


def test_only_files_whose_bytes_changed_are_attached_again(store, folder, tmp_path):
    study, tracker = store.load(), Sent()
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    known = attach(tracker, study, tmp_path)  # type: ignore[arg-type]
    assert len(tracker.files) == len(PICTURES) + 3
    (tmp_path / "report.md").write_text("another page")
    (tmp_path / "notes.txt").write_text("not of the report")
    tracker.files.clear()
    attach(tracker, study, tmp_path, known)  # type: ignore[arg-type]
    assert tracker.files == ["report/report.md"]


def test_a_live_report_that_cannot_be_drawn_is_a_warning_and_wake_returns_at_once(store, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    live = LiveReport(store, Sent(), blocked, every_seconds=0.0)  # type: ignore[arg-type]
    live.wake()
    live.close()
    assert live.drawn == 0
    assert "the report was not drawn" in caplog.text


def test_a_live_report_is_not_drawn_more_often_than_it_may(store, tmp_path):
    live = LiveReport(store, Sent(), tmp_path, every_seconds=3600.0)  # type: ignore[arg-type]
    for _ in range(100):
        live.wake()
    assert live._thread is None
