"""Figures as values: both renderers draw every kind of mark, and text stays text in both."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from study.comparison import figures as comparison
from study.comparison.record import conclude
from study.figures import interactive, static
from study.figures.content import Bars, Cells, Figure, Frame, Panel, Path, Paths, Rule, Scale, Series, Shade
from study.figures.style import ROLES
from study.models.card_figure import card_figure
from tests.support.shipped import manifest_of
from trainers.evaluation.record import wilson

EVIL = "<img src=x onerror=alert(1)> $a_$ & %{x}"
SHADE = Shade("number", 0, 4, whole=True)
MARKS = [
    Series("complete", (1, 2, 3), (3, 1, 2), "points", ("one", "two\nmore", "three"), 6.0, tags=(("7", False),) * 3),
    Series("complete", (1, 2), (3, 1), "errors", size=9.0, x_errors=((0.1, 0.2),) * 2, y_errors=((0.3, 0.4),) * 2),
    Series("grey", (1, 2), (3, 1), "shaded", size=(4.0, 8.0), shades=(1.0, 3.0)),
    Series("best", (1, None, 2), (3, None, 1), "line", width=2.0, dash="dash", shape="after"),
    Series("pruned", (1, 2), (3, 1), "curve", ("all",), 6.0, 1.0, ends=True),
    Series("complete", (1, 2), (3, 1), "area", shape="after", area=True, opacity=0.3),
    Series("best star", (), (), "nothing", size=6.0, fill="none"),
    Bars("failed", (1, 2), (3, 4), (0.5, 0.0), "bars", ("a", "b"), ("host", ""), errors=((0.1, 0.2),) * 2),
    Bars("failed", (1, 2), (3, 4), label="upright", upright=True),
    Rule(2.0, "x", "floor", "dash", refused=0.0),
    Rule(2.0, "y", "level"),
    Cells(((1.0, None), (3.0, 4.0)), (("1", "-"), ("3", "4")), SHADE),
    Frame(1, 0, "marked", "dot"),
    Paths(
        (("a", ((0.0, "low"), (1.0, "high"))), ("b", ())), (Path((0.1, 0.5), 2.0, bold=True), Path((1, 0), None)), SHADE
    ),
]


def one(*marks, **more) -> Figure:
    return Figure("name", "title", (Panel(marks, Scale("x"), Scale("y")),), 6.0, 4.0, shade=SHADE, **more)


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: f"{type(mark).__name__} {getattr(mark, 'label', '')}")
def test_both_renderers_draw_every_kind_of_mark(mark, tmp_path):
    figure = one(mark)
    static.write(figure, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"name.png", "name.pdf"}
    plot = interactive.plot(figure)
    json.dumps(plot, allow_nan=False)
    assert plot["data"] or plot["layout"]["shapes"]
    shown = [item["name"] for item in [*plot["data"], *plot["layout"]["shapes"]] if item.get("showlegend")]
    assert shown == list(figure.labels())
    legends = static.draw(figure).legends
    assert [text.get_text() for legend in legends for text in legend.get_texts()] == shown


def test_a_label_that_many_marks_have_is_one_entry_of_the_legend():
    figure = one(*(Series("complete", (n,), (n,), "full length", size=5.0) for n in range(100)))
    assert list(figure.labels()) == ["full length"]
    plot = interactive.plot(figure)
    assert [trace["showlegend"] for trace in plot["data"]] == [True] + [False] * 99
    assert len(static.draw(figure).legends[0].get_texts()) == 1


def test_text_is_escaped_for_the_browser_and_is_no_formula_in_print():
    marks = (Series("complete", (1,), (1,), EVIL, (EVIL + "\n" + EVIL,), 5.0, tags=((EVIL, True),)),
             Bars("failed", (1,), (1,), label=EVIL + "2", names=(EVIL,)), Rule(1.0, label=EVIL + "3"))  # fmt: skip
    ticks = ((0.0, EVIL), (1.0, EVIL))
    panel = Panel(marks, Scale(EVIL, ticks=ticks), Scale(EVIL, ticks=ticks), EVIL)
    cells = Cells(((1.0,),), ((EVIL,),), Shade(EVIL, 0, 1))
    paths = Paths(((EVIL, ticks),), (Path((0.0,), None),), Shade(EVIL, 0, 1))
    more = (Panel((cells, Frame(0, 0, EVIL + "4"))), Panel((paths,)), Panel(empty=EVIL))
    figure = Figure("name", EVIL, (panel, *more), 9.0, 9.0, columns=2, shade=Shade(EVIL, 0, 1))
    text = json.dumps(interactive.plot(figure))
    assert "<img" not in text
    assert text.count("&lt;img") > 15
    drawn = static.draw(figure)
    drawn.canvas.draw()  # an unescaped formula would not even be drawn
    assert static.plain(EVIL) in {label.get_text() for label in drawn.legends[0].get_texts()}


def test_an_empty_panel_is_its_sentence_and_an_empty_figure_small(tmp_path):
    figure = one()
    empty = replace(figure, panels=(Panel(empty="Nothing was measured."),) * 2, columns=2, shade=None)
    assert (figure.empty, empty.empty) == ("", "Nothing was measured.")
    drawn = static.draw(empty)
    assert drawn.get_size_inches()[1] < 3
    assert [axes.texts[0].get_text() for axes in drawn.axes] == ["Nothing was measured."] * 2
    plot = interactive.plot(replace(empty, panels=(empty.panels[0], Panel((MARKS[0],)))))
    assert [note["text"] for note in plot["layout"]["annotations"]] == ["Nothing was measured."]
    assert plot["layout"]["xaxis"] == {"visible": False}


def test_panels_share_the_width_and_the_height_without_touching():
    figure = Figure(
        "name", "t", (Panel((MARKS[0],), title="p"),) * 7, 12.0, 6.0, columns=4, share_y=True, heights=(2, 1)
    )
    layout = interactive.plot(figure)["layout"]
    across = [layout[f"xaxis{n or ''}"]["domain"] for n in ("", 2, 3, 4)]
    assert all(one[1] < other[0] for one, other in pairwise(across))
    above, below = layout["yaxis"]["domain"], layout["yaxis5"]["domain"]
    assert below[1] < above[0]
    assert above[1] - above[0] == pytest.approx(2 * (below[1] - below[0]))
    assert layout["xaxis4"]["showticklabels"]
    assert not layout["yaxis2"]["showticklabels"]


def test_every_role_has_a_marker_that_both_renderers_know():
    assert {role.marker for role in ROLES.values()} <= set(static.MARKERS)


def test_the_models_card_has_a_point_and_its_interval_for_every_set():
    figure = card_figure(manifest_of())
    clean, robust = figure.panels
    own, clip = robust.marks
    assert (own.label, own.x) == ("this model", (40.0, 40.0))
    low, high = wilson(80, 200)
    assert own.x_errors[0] == pytest.approx((40 - 100 * low, 100 * high - 40))
    assert clip.x == pytest.approx((15.0, 15.0))
    assert [text for _, text in clean.y.ticks] == ["small-a\neps 4/255", "small-b\neps 4/255"]
    assert {text for _, text in robust.y.ticks} == {""}  # the same rows
    interactive.plot(figure)


def record(trials: list[dict], sets: int = 1) -> dict:
    """Two methods with these trials, each with two seeds of 40 and 60 % clean and 25 % robust, and one that failed."""

    def final(clean: float) -> dict:
        scores = {"4/255": {"clean_accuracy": clean, "robust_accuracy": 0.25}}
        return {"datasets": {f"set-{number}": scores for number in range(sets)}}

    runs = [{"seed": 1, "final": final(0.4)}, {"seed": 2, "final": final(0.6)}, {"seed": 3, "final": None}]
    setting = {"goal": {"metric": "robust_accuracy", "subject_to": {}}}
    methods = {label: {"runs": runs, "search": {"trials": trials}} for label in ("a", "b")}
    return conclude({"name": "compare", "setting": setting, "unmodified": {"final": final(0.5), "dev": None},
                     "reference": "a", "methods": methods})  # fmt: skip


def test_a_comparisons_search_curve_rises_with_feasible_full_length_trials_only():
    values = [(0.3, False, "complete"), (0.2, True, "complete"), (0.9, True, "pruned"), (None, False, "failed"),
              (0.1, True, "complete"), (0.4, True, "complete")]  # fmt: skip
    trials = [{"robust_accuracy": v, "feasible": feasible, "state": state} for v, feasible, state in values]
    accuracy, sets, search = comparison.figures(record(trials))
    line = next(mark for mark in search.panels[0].marks if mark.label == "a")
    assert (line.x, line.y) == ((2, 3, 4, 5, 6), (20.0, 20.0, 20.0, 20.0, 40.0))
    hollow = [mark for mark in search.panels[0].marks if mark.fill == "none"]
    assert [(mark.x, mark.y) for mark in hollow] == [((1,), (30.0,))] * 2 + [((), ())]
    bars = [mark for mark in sets.panels[1].marks if isinstance(mark, Bars)]
    assert [(bar.places, bar.lengths) for bar in bars] == [((-0.2,), (25.0,)), ((0.2,), (25.0,))]
    mean = next(mark for mark in accuracy.panels[0].marks if mark.label == "b")
    assert (mean.x, mean.y) == ((50.0,), (25.0,))
    assert mean.x_errors[0] == pytest.approx((100 * 0.02**0.5, 100 * 0.02**0.5))
    for figure in (accuracy, sets, search):
        static.draw(figure).canvas.draw()
        json.dumps(interactive.plot(figure), allow_nan=False)


@pytest.mark.parametrize("number", [1, 15])
def test_a_comparison_of_many_final_sets_stays_on_a_page(number):
    made = record([{"robust_accuracy": 0.3, "feasible": True, "state": "complete"}], sets=number)
    sets = comparison.figures(made)[1]
    assert sets.width <= 16
    assert sets.columns == (2 if number == 1 else 1)
