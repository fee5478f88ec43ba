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

from study.figures import interactive, static
from study.figures.content import Bars, Figure, Rule, Series
from study.report.content import Axis, Content, content_of
from study.report.live import LiveReport, attach
from study.report.page import figures, html_of, write_report
from study.report.results import at_once, clock_of
from study.report.space import FEW, NO_TRIALS, NOT_SET, fraction, slices, ticks
from study.results.facts import trials_of
from study.results.ranking import best_so_far, best_trial, pareto_front
from study.store.store import StudyStore
from tests.support.studies import BASELINE, FAILED, LOST, RUNNING, TWICE, synthetic_study


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
    larger = [
        record.model_copy(update={"datasets": {
            name: {eps: score.model_copy(update={"total": 4 * score.total}) for eps, score in scores.items()}
            for name, scores in record.datasets.items()
        }})
        for record in rows[0].epochs
    ]  # fmt: skip
    rows[0] = replace(rows[0], epochs=tuple(larger))
    assert trials_of(study, rows)[0].robust_error == pytest.approx(before.robust_error / 2)


# --- figures -------------------------------------------------------------------------------------------------------


NAMES = ["tradeoff", "progress", "curves", "parallel", "slices", "importances", "timeline"]


def figure(content: Content, name: str) -> Figure:
    return {each.name: each for each in figures(content)}[name]


def of(panel, kind, label: str = ""):
    """A panel's marks of a kind, with a label if one is given."""
    return [mark for mark in panel.marks if isinstance(mark, kind) and (not label or mark.label == label)]


def test_the_trade_off_has_the_floor_the_unmodified_model_and_the_front(content):
    tradeoff = figure(content, "tradeoff")
    (panel,) = tradeoff.panels
    assert {"Pareto front", "unmodified CLIP", "floor of clean accuracy", "the paper's defaults", "warm start",
            f"best: trial {content.best}, 95 % of its dev images", "stopped early (not in the front)"} <= set(
                tradeoff.labels())  # fmt: skip
    (clip,) = of(panel, Series, "unmodified CLIP")
    assert (clip.x, clip.y) == ((73.0,), (22.0,))
    (rule,) = of(panel, Rule)
    assert (rule.axis, rule.value, rule.refused) == ("x", pytest.approx(100 * 0.87 * 0.73), panel.x.low)
    assert panel.x.low < rule.value < 73.0 < panel.x.high
    (front,) = of(panel, Series, "Pareto front")
    trials = [content.trial(number) for number in content.pareto]
    assert front.x == tuple(100 * trial.clean_accuracy for trial in trials)
    assert [text for text, _ in front.tags] == ["" if t.number == content.best else str(t.number) for t in trials]
    (best,) = of(panel, Series, f"best: trial {content.best}, 95 % of its dev images")
    found = content.trial(content.best)
    assert best.x_errors == ((100 * found.clean_error,) * 2,)
    assert best.texts[0].startswith(f"trial {content.best}: full length, 6/6 epochs\nclean {best.x[0]:.1f} %, robust")


def test_the_progress_is_told_by_trials_and_by_device_hours(content):
    by_trials, by_hours = figure(content, "progress").panels
    for panel, places in ((by_trials, range(1, len(content.progress) + 1)),
                          (by_hours, [step.device_seconds / 3600 for step in content.progress])):  # fmt: skip
        (best,) = of(panel, Series, "best so far")
        known = [(x, 100 * step.robust_accuracy) for x, step in zip(places, content.progress, strict=True)
                 if step.best is not None]  # fmt: skip
        assert list(zip(best.x, best.y, strict=True)) == known
        assert best.shape == "after"
        assert of(panel, Rule)[0].value == 22.0


def test_every_trial_has_a_curve_that_ends_in_the_marker_of_its_state(content):
    robust, clean = figure(content, "curves").panels
    shown = [trial for trial in content.trials if trial.curve]
    assert len(of(robust, Series)) == len(of(clean, Series)) == len(shown)
    assert of(robust, Series)[-1].label == f"best: trial {content.best}"  # on top of all
    first = next(line for line in of(clean, Series) if line.texts[0].startswith("trial 5:"))
    assert (first.role, first.ends, first.x) == ("failed", True, (1,))
    assert first.y == (100 * content.trial(5).curve[0].clean_accuracy,)


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
    place = [axis.path for axis in content.axes].index("train.optimizer.momentum")
    lacking = [t for t in content.in_state("complete", "pruned") if "train.optimizer.momentum" not in t.params]
    assert lacking
    paths = figure(content, "parallel").panels[0].marks[0]
    assert paths.columns[place][1][0] == (NOT_SET, "not set")
    assert sum(path.values[place] == NOT_SET for path in paths.paths) == len(lacking)
    panel = figure(content, "slices").panels[place]
    assert panel.x.ticks[0] == (NOT_SET, "not set")
    assert panel.x.low < NOT_SET
    assert all(x == NOT_SET or 0 <= x <= 1 for mark in panel.marks for x in mark.x)


def test_parallel_coordinates_have_a_line_a_trial_and_grey_ones_for_those_that_were_stopped(content):
    paths = figure(content, "parallel").panels[0].marks[0]
    assert len(paths.columns) == len(content.axes) + 2
    assert sum(path.shade is None for path in paths.paths) == len(content.in_state("pruned"))
    (best,) = [path for path in paths.paths if path.bold]
    assert best.shade == 100 * content.trial(content.best).robust_accuracy == paths.shade.high
    assert all(NOT_SET <= value <= 1 for path in paths.paths for value in path.values)
    (trace,) = interactive.plot(figure(content, "parallel"))["data"]
    assert {len(dimension["values"]) for dimension in trace["dimensions"]} == {len(paths.paths)}
    assert trace["line"]["color"][0] == trace["line"]["cmin"] < paths.shade.low  # grey: below every value


def test_slices_show_stopped_trials_only_while_full_length_ones_are_few(content):
    assert len(content.in_state("complete")) >= FEW
    assert "stopped early" not in figure(content, "slices").labels()
    assert ": full-length trials by parameter" in figure(content, "slices").title
    kept = [t for t in content.trials if t.state == "pruned"] + content.in_state("complete")[: FEW - 1]
    few = replace(content, trials=tuple(sorted(kept, key=lambda t: t.number)), best=None, pareto=(), progress=())
    (stopped,) = of(slices(few).panels[0], Series, "stopped early")
    assert stopped.opacity < 1
    assert ": full-length and stopped trials by parameter" in slices(few).title
    assert len(stopped.x) == len(content.in_state("pruned"))
    none = replace(few, trials=())
    assert slices(none).empty == NO_TRIALS


def test_the_bars_of_importances_are_shares_and_the_rule_is_noise(content):
    for panel, each in zip(figure(content, "importances").panels, content.importances, strict=True):
        assert [text for _, text in panel.y.ticks][-1] == {a.path: a.label for a in content.axes}[each.entries[0].path]
        bars = of(panel, Bars)
        assert sum(len(bar.places) for bar in bars) == len(each.entries)
        clear = sum(len(bar.places) for bar in bars if bar.role == "complete")
        assert clear == (0 if each.note else sum(entry.above_noise for entry in each.entries))
        assert of(panel, Rule)[0].value == each.noise


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
    above, below = figure(content, "timeline").panels
    drawn = of(above, Bars)
    assert sorted(place for mark in drawn for place in mark.places) == sorted(bar.trial for bar in bars)
    assert {"full length", "paused", "lost with its driver"} <= {mark.label for mark in drawn}
    unit, name, origin = clock_of(content)
    assert name == "minutes"
    first = min(bars, key=lambda bar: (bar.started_ms, bar.trial))
    assert drawn[0].starts[0] == (first.started_ms - origin) / unit
    assert of(below, Series)[0].y[-1] == 0.0


@pytest.mark.parametrize(("trials", "finished"), [(0, False), (1, False), (3, True), (24, False), (100, True)])
def test_both_renderers_draw_every_figure_of_a_study_of_any_length(tmp_path, trials, finished):
    store = synthetic_study(tmp_path, trials=trials, finished=finished)
    known = content_of(store.load(), store.trials()[:3]).importances if trials > 24 else None
    found = figures(content_of(store.load(), store.trials(), known=known))
    assert [each.name for each in found] == NAMES
    for each in found:
        drawn = static.draw(each)
        drawn.canvas.draw()
        shown = [axes for axes in drawn.axes if axes.get_visible() and axes.axison]
        assert bool(shown) == (not each.empty)
        plot = interactive.plot(each)
        json.dumps(plot, allow_nan=False)
        assert bool(plot["data"]) == (not each.empty)
        sentences = [panel.empty for panel in each.panels if panel.empty]
        written = [text["text"] for text in plot["layout"]["annotations"]]
        assert all(sentence in written for sentence in sentences)
    if trials == 0:
        assert all(each.empty.endswith(("yet.", "at full length")) for each in found)
    if trials == 3:
        assert {each.name for each in found if each.empty} == {"importances"}


def test_the_report_of_a_study_without_any_trial_says_so_in_sentences(tmp_path):
    empty = synthetic_study(tmp_path, name="empty", trials=0)
    path = write_report(empty.load(), empty.trials(), tmp_path / "report")
    assert "0 of" in path.read_text()
    assert {file.name for file in path.parent.iterdir()} == {"report.md", "report.html", "report.json", "trials.tex"}
    page = path.with_name("report.html").read_text()
    for sentence in ("No trial has measured anything yet.", "No trial has finished yet.", NO_TRIALS,
                     "too few trials: 0 of at least 10 at full length", "No trial has begun yet."):  # fmt: skip
        assert f'<p class="none">{sentence}</p>' in page


def test_promotions_stand_in_the_report_with_what_was_against_them(store, tmp_path):
    gates = [
        {"name": "final better than CLIP", "verdict": "failed", "found": "+1.0 | points", "needed": "more"},
        {"name": "floor clean", "verdict": "passed", "found": "", "needed": ""},
    ]
    against = "final better than CLIP: +1.0 | points, needed more"
    record = {"trial": 3, "version": None, "gates": gates, "reason": against, "look": {"number": 2}, "forced": None}
    forced = {**record, "version": 5, "forced": "<b>the talk", "reason": "forced, because"}
    rows = [
        {"state": "refused", "ended_ms": 1764300000000, "record": record},
        {"state": "promoted", "ended_ms": 1764300000000, "record": forced},
        {"state": "started", "ended_ms": None, "record": None},
    ]
    text = write_report(store.load(), store.trials(), tmp_path, promotions=rows, papers=False).read_text()
    escaped = against.replace("|", "\\|")
    assert f"| 2025-11-28 03:20 | 3 | refused | 2 | {escaped} |  |" in text
    assert f"| 3 | promoted: version 5, against its gates | 2 | {escaped} | forced: &lt;b>the talk |" in text
    page = (tmp_path / "report.html").read_text()
    assert '<a href="#promotions">' in page
    assert "forced: &lt;b&gt;the talk" in page
    assert [each["state"] for each in json.loads((tmp_path / "report.json").read_text())["promotions"]] == [
        "refused", "promoted",
    ]  # fmt: skip
    without = write_report(store.load(), store.trials(), tmp_path, papers=False)
    assert "Promotions" not in without.read_text()
    assert "#promotions" not in without.with_name("report.html").read_text()


def test_words_of_one_legend_or_axis_do_not_lie_over_each_other(content):
    """At the size that is saved: tick labels of each axis, panel titles and the legend's entries, pairwise."""
    for each in figures(content):
        drawn = static.draw(each)
        drawn.canvas.draw()
        groups = [[drawn._suptitle, *(axes.title for axes in drawn.axes)]]
        groups += [legend.get_texts() for legend in drawn.legends]
        for axes in drawn.axes:
            if axes.get_visible() and axes.axison:
                groups += [axes.get_yticklabels(), axes.get_xticklabels() if not axes.xaxis.get_tick_params().get(
                    "labelrotation") else []]  # fmt: skip
        for group in groups:
            boxes = [text.get_window_extent() for text in group if text.get_text() and text.get_visible()]
            for one, other in itertools.combinations(boxes, 2):
                assert not one.overlaps(other), (each.name, [text.get_text() for text in group])


def test_figures_are_drawn_outside_the_main_thread_too(content):
    failures: list[BaseException] = []

    def draw() -> None:
        try:
            static.draw(figure(content, "tradeoff")).canvas.draw()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=draw) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == []


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_folder_has_markdown_page_json_and_every_figure_as_png_and_pdf(folder):
    files = {f"{name}.{kind}" for name in NAMES for kind in ("png", "pdf")}
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.html", "report.json", "trials.tex", *files}
    text = (folder / "report.md").read_text()
    for name in NAMES:
        assert f"]({name}.png)" in text
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        paper = (folder / f"{name}.pdf").read_bytes()
        assert paper.startswith(b"%PDF")
        assert b"/Type3" not in paper
        assert b"/CreationDate" not in paper


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
    assert page.tags.count("script") == clean.tags.count("script") == 4
    assert evil in next(row[-1] for row in page.rows if row[0] == "5")  # shown as it was written
    assert not any("javascript:" in address for address in page.addresses)
    data = re.search(r'id="report-data">(.*?)</script>', text, flags=re.S)
    assert data is not None
    assert "<" not in data[1]
    hovers = json.dumps(json.loads(data[1]))
    assert "<img" not in hovers
    markdown = write_report(study, rows, tmp_path, known=content.importances).read_text()
    assert "<img" not in markdown


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
    assert len(tracker.files) == len(NAMES) + 3  # MLflow gets no PDF
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
