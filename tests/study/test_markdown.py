"""Text of users in Markdown is shown as it is, held to a renderer of Markdown."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from study.evaluation.table import markdown_table
from study.evaluation.units import Evaluation
from study.markdown import as_code, escaped
from tests.support.records import record
from trainers.schema.suite import AttackAt, Suite

RENDER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render
NASTY = ["a|b", "<script>alert(1)</script>", "[x](http://evil)", "![x](y)", "**bold**", "_it_", "a_b_c", "`code`",
         "~~s~~", "&amp; &lt;", "\\", "x\n# heading", "a\r\n| b |", "$x$", "<!-- x",
         "\\|", "`` ` ``", "*", "[", "  spaces  "]  # fmt: skip
TEXT = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"])))


def shown(cell: str) -> str:
    """What a reader sees of a cell, between two others, and that there is no other element."""
    html = RENDER(f"| a | b | c |\n| --- | --- | --- |\n| 1 | {cell} | 3 |\n")
    cells = re.findall(r"<td>(.*?)</td>", html, re.DOTALL)
    assert len(cells) == 3
    assert (cells[0], cells[2]) == ("1", "3")
    return cells[1]


@pytest.mark.parametrize("text", NASTY)
def test_markup_and_html_of_users_are_text(text: str) -> None:
    wanted = " ".join(text.split())
    assert unescape(shown(escaped(text))) == wanted
    assert RENDER(f"# Study {escaped(text)}").count("<") == 2
    assert unescape(shown(as_code(text))).removeprefix("<code>").removesuffix("</code>") == wanted


@settings(deadline=None, max_examples=100)
@given(TEXT)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    found = shown(escaped(text))
    assert "<" not in found
    assert unescape(found) == " ".join(text.split())


def test_names_that_nobody_would_mark_up_stay_as_they_are() -> None:
    for name in ("tiny-shapes", "robust_accuracy", "folder:/data/my pets", "1/255", "f1.2 (n = 9)"):
        assert escaped(name) == name


def test_a_table_of_accuracies_keeps_its_columns_whatever_a_set_and_a_model_are_called() -> None:
    name = "folder:/data/a|b <b>x</b>"
    found = record(name, 5, 10, 3)
    suite = Suite(name="mine", datasets=(name,), attacks=(AttackAt(attack=found.attack.attack),))
    model = found.model.model_copy(update={"label": "my [best](x) | one"})
    html = RENDER(markdown_table(Evaluation(model, None, None, suite, "cpu"), [found], intervals=True))
    assert unescape(re.findall(r"<td>(.*?)</td>", html)[0]) == name
    assert len(re.findall("<td", html)) == len(re.findall(r"<th\b", html.replace("<thead", ""))) == 4
    assert "my [best](x) | one on suite mine" in unescape(html)
