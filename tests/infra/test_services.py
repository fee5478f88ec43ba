"""The services' address: read by one function, written by one, the same for everybody in the process."""

from __future__ import annotations

import os
import re

import pytest

from infra import s3, storage
from infra.errors import UserError
from infra.services import missing_variables, s3_address, services_from_environment, use

GIVEN = {
    "AWS_ENDPOINT_URL": "http://aws:1", "AWS_REGION": "here", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
    "MLFLOW_TRACKING_URI": "http://mlflow:5000", "AGFT_BUCKET": "b",
}  # fmt: skip


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of services; whatever a test writes is taken back."""
    names = [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "AGFT_"))]
    for name in {*names, *GIVEN, "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED", "AWS_ENDPOINT_URL_S3"}:
        monkeypatch.setenv(name, "")  # so that monkeypatch knows of it
        monkeypatch.delenv(name)
    return monkeypatch


def test_the_address_for_s3_alone_goes_before_the_one_for_all_of_aws(bare: pytest.MonkeyPatch) -> None:
    given = {**GIVEN, "AWS_ENDPOINT_URL_S3": "http://s3:2"}
    services = services_from_environment(given)
    assert services is not None
    assert services.s3_endpoint == "http://s3:2"
    assert s3_address(given) == ("http://s3:2", "here")
    use(services)
    assert storage.client().meta.endpoint_url == s3.impatient_client().meta.endpoint_url == "http://s3:2"
    assert services_from_environment(os.environ) == services


@pytest.mark.parametrize("given", [{"AWS_ENDPOINT_URL": ""}, {}], ids=["alone", "beside-another"])
def test_an_address_for_s3_alone_is_not_made_that_of_the_services_which_give_a_role_s_keys(
    bare: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in {**GIVEN, **given, "AWS_ENDPOINT_URL_S3": "http://s3:2"}.items():
        bare.setenv(name, value)
    before = os.environ["AWS_ENDPOINT_URL"]
    services = services_from_environment(os.environ)
    assert services is not None
    use(services)
    assert os.environ["AWS_ENDPOINT_URL"] == before
    assert storage.client().meta.endpoint_url == "http://s3:2"


def test_without_an_endpoint_aws_itself_is_meant(bare: pytest.MonkeyPatch) -> None:
    assert s3_address({}) == (None, "us-east-1")
    bare.setenv("AWS_ACCESS_KEY_ID", "k")
    bare.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert storage.client().meta.endpoint_url.endswith("amazonaws.com")


def test_who_uses_other_keys_gets_another_client(bare: pytest.MonkeyPatch) -> None:
    for name, value in GIVEN.items():
        bare.setenv(name, value)
    first = storage.client()
    assert storage.client() is first
    bare.setenv("AWS_ACCESS_KEY_ID", "another")
    assert storage.client() is not first


def test_half_a_user_of_mlflow_is_missing_its_other_half_and_none_is_fine() -> None:
    assert missing_variables(GIVEN) == []
    assert missing_variables({**GIVEN, "MLFLOW_TRACKING_USERNAME": "me"}) == ["MLFLOW_TRACKING_PASSWORD"]
    lacking = {name: value for name, value in GIVEN.items() if name not in ("AWS_REGION", "AGFT_BUCKET")}
    assert missing_variables(lacking) == ["AWS_REGION or AWS_DEFAULT_REGION", "AGFT_BUCKET"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:5000", "write http://127.0.0.1:5000"),
        ("mlflow.example:5000/base", "write http://mlflow.example:5000/base"),
        ("./mlruns", "like http://HOST:5000"),
        ("file:///home/me/mlruns", "like http://HOST:5000"),
        ("sqlite:///mlflow.db", "like http://HOST:5000"),
        ("databricks", "like http://HOST:5000"),
        ("http://", "like http://HOST:5000"),
        ("http://host:port", "like http://HOST:5000"),
        ("http://host:70000", "like http://HOST:5000"),
        ("http://[::1", "like http://HOST:5000"),
        ("http://me:hidden@host:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("me:hidden@host:5000", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_what_is_no_address_of_an_mlflow_server_is_refused_in_one_message(address: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        services_from_environment({**GIVEN, "MLFLOW_TRACKING_URI": address})
    assert str(caught.value).startswith("MLFLOW_TRACKING_URI: ")
    assert "hidden" not in str(caught.value)
