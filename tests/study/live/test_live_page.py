"""The live page by plain HTTP: who is let in, what it shows, what its buttons do."""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from study.live.server import Server
from study.live.snapshot import COMPUTING, EVERY_SECONDS
from study.store.store import StudyStore
from tests.support.studies import synthetic_study


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StudyStore:
    return synthetic_study(tmp_path_factory.mktemp("home"), name="a-study", trials=4)


def ask(server: Server, path: str, *, asked: Any = None, **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of an answer, with the right login unless `Authorization` says another."""
    right = {"Authorization": server.wanted.decode()}
    body = None if asked is None else json.dumps(asked).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.address().rstrip("/") + path, body, {**right, **named})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


@pytest.mark.parametrize("given", ["", "Basic " + base64.b64encode(b"agft:guess").decode(), "Bearer x"])
@pytest.mark.parametrize("path", ["/", "/studies/a-study", "/studies/a-study/parts", "/studies/a-study/log", "/other"])
def test_who_has_no_password_is_refused_everywhere(server, path, given):
    status, text, headers = ask(server, path, Authorization=given)
    assert (status, text) == (401, "a user and a password are needed\n")
    assert headers["WWW-Authenticate"] == 'Basic realm="agft"'
    assert ask(server, f"{path}/stop", asked={}, Authorization=given, X_AGFT_Token=server.token)[0] == 401


def test_a_browser_that_breaks_its_connection_leaves_no_traceback(server, capfd):
    before = set(threading.enumerate())
    whole = f"GET / HTTP/1.1\r\nHost: {server.server_address[0]}:{server.server_port}\r\n"
    whole += f"Authorization: {server.wanted.decode()}\r\n\r\n"
    for begun in ("GET / HT", whole * 20):  # in the middle of a request, and without reading the answers
        with socket.create_connection(server.server_address) as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell
            browser.sendall(begun.encode())
            time.sleep(0.1)  # it is being served
    end = time.monotonic() + 20
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    assert ask(server, "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_request_under_another_name_is_refused(server):
    assert ask(server, "/", Host="evil.example")[0] == 421
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_a_button_needs_the_token_of_the_page_and_says_what_it_did(server, store):
    assert ask(server, "/studies/a-study/pause", asked={})[0] == 403
    assert ask(server, "/studies/a-study/pause", asked={}, X_AGFT_Token="guess")[0] == 403
    assert store.load().desired == "run"
    status, text, _ = ask(server, "/studies/a-study/pause", asked={}, X_AGFT_Token=server.token)
    assert (status, json.loads(text)["said"][:6]) == (200, "asked:")
    assert store.load().desired == "pause"
    status, text, _ = ask(server, "/studies/a-study/extend", asked={"trials": 3}, X_AGFT_Token=server.token)
    assert "a budget of 7 trials now" in json.loads(text)["said"]


@pytest.mark.parametrize(
    ("action", "asked", "said"),
    [
        ("delete", {}, "no such button; there are pause, resume"),
        ("drop", {}, "which trial?"),
        ("drop", {"trial": 99}, "has no trial 99"),
        ("extend", {"trials": "many"}, "a button says whole numbers"),
        ("extend", [1], "a button says whole numbers"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(server, store, action, asked, said):
    before = store.load(), store.trials()
    status, text, _ = ask(server, f"/studies/a-study/{action}", asked=asked, X_AGFT_Token=server.token)
    assert (status, said in json.loads(text)["said"]) == (409, True), text
    assert (store.load().spec, store.trials()) == (before[0].spec, before[1])


def test_an_unknown_study_is_answered_with_the_nearest_name(server):
    status, text, _ = ask(server, "/studies/a-stud")
    assert (status, "did you mean 'a-study'?" in text) == (404, True)


def changed(server: Server, version: str) -> tuple[dict[str, Any], str]:
    """The first parts that are not of this version, and theirs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status, text, headers = ask(server, f"/studies/a-study/parts?known={version}")
        if status == 200:
            return json.loads(text), headers["X-Version"]
        assert status == 204
        time.sleep(0.1)
    raise AssertionError("nothing has changed in a minute")


def test_the_page_is_the_report_s_and_parts_come_when_something_has_changed(server, store):
    status, page, headers = ask(server, "/studies/a-study")
    assert status == 200
    assert server.token in page
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    for section in ("tradeoff", "progress", "curves", "parallel", "slices", "importances", "timeline"):
        assert f'id="{section}-section"' in page
    assert EVERY_SECONDS <= 1.0, "the page is at most 2 s old: it asks every second"
    parts, version = changed(server, "")
    while COMPUTING in parts["sections"]["importances"]:
        parts, version = changed(server, version)
    assert ask(server, f"/studies/a-study/parts?known={version}")[0] == 204
    store.finish_trial(store.load().token, 0, "dropped", stop_reason="by hand", dropped_at=4)
    parts, _ = changed(server, version)
    assert 'data-trial="0" data-state="dropped"' in parts["rows"]
    assert set(parts["figures"]) <= set(parts["sections"])


def test_the_list_of_studies_links_to_each(server):
    assert 'href="/studies/a-study"' in ask(server, "/")[1]


def test_the_log_of_a_study_that_nobody_has_driven_here_says_so_and_starts_nothing(server):
    assert "No driver has run here" in ask(server, "/studies/a-study/log")[1]
