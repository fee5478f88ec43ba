"""What an environment says of the services is looked at before anything is started; no message shows a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from infra import s3, storage
from infra.errors import Away, UserError
from infra.services import services_from_environment
from tests.infra.test_services import GIVEN
from tests.support.services.small_s3 import SmallS3, small_s3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    with small_s3(monkeypatch) as store, s3.one_attempt():
        yield store


def said_of(name: str, value: str) -> str:
    with pytest.raises(UserError, match=f"^{name}") as caught:
        services_from_environment({**GIVEN, name: value})
    return str(caught.value)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", ["geheim\n", " geheim", "ge heim", "geheim\x07", "geheimü"])
def test_a_key_with_a_character_that_cannot_be_sent_is_named_and_not_shown(name: str, value: str) -> None:
    assert "heim" not in said_of(name, value)


@pytest.mark.parametrize(
    "value",
    [
        "http://me:ge/heim@host:5000", "http://me:12#geheim@host", "http://me:12/geheim@host", "http://me:?geheim@host",
        "http//me:geheim@host", "https:/me:geheim@host", "http:///me:geheim@host", "http://host:5000?token=geheim",
        "http://host:5000/#geheim",
    ],
)  # fmt: skip
def test_nothing_is_shown_of_an_address_of_mlflow_that_may_hold_a_password(value: str) -> None:
    assert "heim" not in said_of("MLFLOW_TRACKING_URI", value)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("s3.lab:9000", "write http://s3.lab:9000"),
        ("HTTP://lab:9000", "write http://lab:9000"),
        ("HTTPS://lab", "write https://lab"),
        ("http://lab:9000?x=y", "write http://lab:9000"),
        ("http://lab:9000\n", "write http://lab:9000"),
        (" http://lab:9000", "write http://lab:9000"),
        ("http://my_store:9000", "a host's name has"),
        ("http://", "expected http://HOST:PORT"),
        ("http://[::1", "expected http://HOST:PORT"),
        ("http://my store:9000", "expected http://HOST:PORT"),
        ("http://lab:abc", "a port is at most 65535"),
        ("http://lab:70000", "a port is at most 65535"),
        ("http://lab:9000:9000", "expected http://HOST:PORT"),
    ],
)
def test_an_address_that_boto3_cannot_use_is_refused_with_the_one_that_was_meant(
    name: str, value: str, advice: str
) -> None:
    said = said_of(name, value)
    assert said.startswith(f"{name} = {value!r}: ")
    assert advice in said


def test_of_an_address_with_a_password_nothing_is_shown() -> None:
    said = said_of("AWS_ENDPOINT_URL", "https://me:geheim@lab:9000")
    assert "AWS_ACCESS_KEY_ID" in said
    assert "geheim" not in said


@pytest.mark.parametrize("value", ["http://10.0.0.1:9000", "https://lab", "http://[::1]:9000", "http://lab:9000/base/"])
def test_other_addresses_are_taken_as_they_are(value: str) -> None:
    services = services_from_environment({**GIVEN, "AWS_ENDPOINT_URL": value})
    assert services is not None
    assert services.s3_endpoint == value


@pytest.mark.parametrize(
    ("value", "advice"),
    [("agft/", "write agft"), ("agft/sub", "write agft"), ("s3://agft", "write agft"), ("agft\n", "write agft"),
     ("My Bucket", "'-' and '_'"), ("s3:", "'-' and '_'")],
)  # fmt: skip
def test_what_is_no_bucket_s_name_is_refused(value: str, advice: str) -> None:
    said = said_of("AGFT_BUCKET", value)
    assert said.startswith(f"AGFT_BUCKET = {value!r}: ")
    assert said.endswith(advice)


@pytest.mark.parametrize("value", ["us-east-1\n", "us east 1", "eu_west_1", "-"])
def test_what_is_no_region_is_refused(value: str) -> None:
    assert "like us-east-1" in said_of("AWS_REGION", value)


def test_an_address_in_a_study_that_boto3_refuses_is_the_user_s_to_mend(store: SmallS3) -> None:
    with pytest.raises(UserError, match=re.escape("s3://My Bucket/w.pt: ")):
        storage.head("s3://My Bucket/w.pt")


def test_a_token_of_a_file_that_cannot_be_sent_is_not_shown(
    store: SmallS3, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    config, script = f"{tmp_path}/config", f"{tmp_path}/give"
    with open(config, "w") as file:
        file.write(f"[default]\ncredential_process = {script}\n")
    with open(script, "w") as file:
        given = r'{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "B", "SessionToken": "geheim\\n"}'
        file.write(f"#!/bin/sh\nprintf '%b' '{given}'\n")
    os.chmod(script, 0o755)
    monkeypatch.setenv("AWS_CONFIG_FILE", config)
    with pytest.raises(Away, match="no key has") as caught:
        storage.put_bytes("s3://lab/key", b"hello")
    assert "geheim" not in str(caught.value)
    assert caught.value.__suppress_context__
