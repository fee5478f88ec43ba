"""The live page in a real browser: sorting, filtering, and a study that is paused and goes on by its buttons."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.stack.embedded import credentials
from study.live.server import USERNAME, Server
from study.store.store import StudyStore
from tests.support.studies import synthetic_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def store(home: Path) -> StudyStore:
    return synthetic_study(home, name="watched")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser: Any, server: Server, home: Path) -> Iterator[Any]:
    login = {"username": USERNAME, "password": credentials(home)["mlflow_password"]}
    context = browser.new_context(http_credentials=login)
    one = context.new_page()
    wrong: list[str] = []
    one.on("pageerror", lambda error: wrong.append(str(error)))
    one.set_default_timeout(WAIT_MS)
    one.goto(server.address("watched"))
    yield one
    context.close()
    assert wrong == []


def column(page: Any, place: int) -> list[str]:
    cells = f"#trials tbody tr:not([hidden]) td:nth-child({place})"
    return [text.strip() for text in page.locator(cells).all_inner_texts()]


def test_a_browser_without_the_password_sees_nothing(browser, server):
    from playwright.sync_api import Error

    context = browser.new_context()
    page = context.new_page()
    with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        page.goto(server.address("watched"))
    page.wait_for_url("chrome-error://**")  # the page that the browser shows in its place
    assert "watched" not in page.content()
    context.close()


def test_a_click_sorts_and_words_and_states_filter(page):
    page.locator("#trials th", has_text="robust %").click()
    shown = [float(text) for text in column(page, 4) if text != "-"]
    assert len(shown) > 20
    assert shown == sorted(shown, reverse=True)
    page.locator("#trials th", has_text="robust %").click()
    assert [float(text) for text in column(page, 4) if text != "-"] == sorted(shown)
    page.locator("#words").fill("adamw asha")
    found = column(page, 2)
    assert found
    assert set(found) == {"stopped early"}
    assert page.locator("#count").inner_text() == f"{len(found)} of 24 trials"
    page.locator("#words").fill("")
    page.locator("#state").select_option("failed")
    assert column(page, 1) == ["5", "14"]


def test_every_figure_of_a_study_with_trials_is_drawn(page):
    for name in ("tradeoff", "curves", "parallel", "importances", "timeline"):
        page.locator(f"#{name}-section").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{name}.js-plotly-plot .main-svg")


def test_a_study_is_paused_and_goes_on_by_its_buttons(page, store, home, monkeypatch):
    """A driver of a test's own obeys; what `resume` starts is the real command, which this home makes end at once."""
    page.locator("#state").select_option("failed")  # what the reader has chosen stays
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("document.getElementById('said').textContent.startsWith('asked:')")
    assert store.load().desired == "pause"
    store.release(store.load().token, "paused")
    page.wait_for_function("document.getElementById('live-state').textContent === 'paused'")
    assert page.locator("#state").input_value() == "failed"
    assert page.get_by_role("button", name="Pause").is_disabled()
    monkeypatch.setenv("AGFT_S3_ENDPOINT", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense")
    page.get_by_role("button", name="Resume").click()
    page.wait_for_function("document.getElementById('said').textContent.startsWith('started: agft resume watched')")
    page.locator("#log-box summary").click()
    page.wait_for_function("document.getElementById('log').textContent.includes('MLFLOW_TRACKING_URI')")
    process = re.search(r"process (\d+)", page.locator("#said").inner_text())
    assert process is not None


def test_a_trial_is_dropped_by_the_button_in_its_row_after_a_question(page, store):
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    page.locator('tr[data-trial="3"] button', has_text="drop").click()
    page.wait_for_selector('tr[data-trial="3"][data-state="dropped"]')
    assert asked == ["Take trial 3 out? Its history stays, and it counts nowhere."]
    assert store.trial(3).state == "dropped"
