"""Keys that a file or a process gives: while they are written anew they are waited for, and no message shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import s3, storage
from infra.errors import Away
from study.driver import away
from tests.support.services.small_s3 import SmallS3, refused, small_s3

SECRET = "geheim"
GOOD = json.dumps({"Version": 1, "AccessKeyId": "A", "SecretAccessKey": SECRET, "SessionToken": SECRET})


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    """Every request to it is made once, without keys in the environment."""
    with small_s3(monkeypatch) as store, s3.one_attempt():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        yield store


@pytest.fixture
def process(store: SmallS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that gives keys."""
    script, config = tmp_path / "give", tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    write(script, GOOD)
    return script


def write(script: Path, says: str, then: str = "") -> None:
    script.write_text(f"#!/bin/sh\ncat <<'EOT'\n{says}\nEOT\n{then}\n")
    script.chmod(0o755)


def put() -> str:
    return storage.put_bytes("s3://lab/key", b"hello")


FAILURES = {
    "prints": ("Session expired: please log in, geheim", ""),
    "fails": ("", "echo geheim >&2; exit 1"),
    "half": ('{"Version": 1, "AccessKeyId": "A"}', ""),
}


@pytest.mark.parametrize("failure", [*FAILURES, "gone"])
def test_a_process_that_gives_no_keys_now_is_waited_for_and_what_it_printed_is_not_shown(
    store: SmallS3, process: Path, failure: str
) -> None:
    put()
    assert s3.lacking_keys() == []
    if failure == "gone":
        process.unlink()
    else:
        write(process, *FAILURES[failure])
    store.answers = lambda _: refused(400, "ExpiredToken")
    with pytest.raises(Away, match="refuses the credentials"):
        put()
    with pytest.raises(Away, match=r"no S3 credentials: .* by hand") as caught:
        put()
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__, "nor in a traceback"
    [lacking] = s3.lacking_keys()
    assert "no S3 credentials" in lacking
    assert SECRET not in lacking
    store.answers = lambda _: None
    write(process, GOOD)
    put()


def test_a_file_that_is_being_written_is_waited_for(
    store: SmallS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, keys = tmp_path / "credentials", "[team]\naws_access_key_id = A\naws_secret_access_key = B\n"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "team")
    for written in ("", keys[:3], keys[:30], None):
        if written is None:
            file.unlink()
        else:
            file.write_text(written)
        with pytest.raises(Away):
            put()
        assert len(s3.lacking_keys()) == 1
        s3._client.cache_clear()
    file.write_text(keys)
    put()


def test_who_watches_s3_outlives_whatever_happens(process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(away, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(away, "AGAIN_SECONDS", 0.05)
    watch = away.Watch("lab")
    watch.start()
    try:
        write(process, "please log in")
        until(lambda: "no S3 credentials" in watch.reason)
        monkeypatch.setattr(s3, "probe", lambda _: {}["an error that nobody has thought of"])
        until(lambda: watch.reason == "S3 could not be asked: KeyError")
        monkeypatch.setattr(s3, "probe", lambda _: None)
        until(lambda: not watch.reason)
        assert watch.is_alive()
    finally:
        watch.ended.set()
        watch.join()


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_profile_that_is_not_there_is_named_with_those_that_are(
    store: SmallS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("[profile lab]\nregion = here\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "nix")
    assert s3.lacking_keys() == ["AWS_PROFILE = 'nix': no such profile; known: lab"]
