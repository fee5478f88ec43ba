"""What the doctor and a promotion ask of a store, on stores that are odd, busy, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from infra import s3, storage
from infra.checks import s3 as check
from infra.checks.s3 import check_s3, require_conditional_puts
from infra.errors import Away, ServiceError
from tests.support.services.small_s3 import Answer, Asked, SmallS3, refused, small_s3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallS3]:
    """Every request to it is made once."""
    with small_s3(monkeypatch) as store, s3.one_attempt():
        yield store


def states(store: SmallS3) -> list[str]:
    """Of all rows; it leaves nothing behind."""
    found = [row.state for row in check_s3("lab") if row.check != "clock"]
    assert not store.objects
    return found


def test_a_store_that_names_a_refused_checksum_beside_the_message_gets_the_older_one(store: SmallS3) -> None:
    def answers(asked: Asked) -> Answer | None:
        message, header = "A header you provided implies functionality that is not implemented", "<Header>{}</Header>"
        name = next((name for name in asked.headers if name.startswith("x-amz-checksum")), "")
        return refused(501, "NotImplemented", message, header.format(name)) if name else None

    store.answers = answers
    storage.put_bytes("s3://lab/key", b"hello")
    assert storage.get_bytes("s3://lab/key") is not None
    storage.delete("s3://lab/key")
    assert states(store) == ["ok", "ok"]
    require_conditional_puts("lab")


def test_a_bucket_that_locks_objects_takes_what_the_doctor_puts_as_it_takes_ours(store: SmallS3) -> None:
    def answers(asked: Asked) -> Answer | None:
        sealed = any(name.startswith(("x-amz-checksum-", "content-md5")) for name in asked.headers)
        message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock"
        return refused(400, "InvalidRequest", message) if asked.method == "PUT" and not sealed else None

    store.answers = answers
    assert states(store) == ["ok", "ok"]
    require_conditional_puts("lab")


def races(asked: Asked) -> bool:
    return asked.method == "PUT" and "if-none-match" in asked.headers


@pytest.mark.parametrize("answer", [refused(503, "SlowDown"), Answer(200, cut=-1)], ids=["busy", "reset"])
@pytest.mark.parametrize("wanted", [races, lambda asked: asked.method == "PUT"], ids=["in-the-race", "before-it"])
def test_a_promotion_asks_again_where_one_answer_is_lost(
    store: SmallS3, monkeypatch: pytest.MonkeyPatch, answer: Answer, wanted: Callable[[Asked], bool]
) -> None:
    monkeypatch.setattr(check, "AGAIN_SECONDS", (0.0, 0.0))
    store.once(answer, wanted)
    require_conditional_puts("lab")
    assert not store.objects
    store.times(100, answer, wanted)
    with pytest.raises(Away):
        require_conditional_puts("lab")


def test_who_answers_everything_kindly_gets_no_promotion(store: SmallS3) -> None:
    store.times(100, Answer(200))
    with pytest.raises(ServiceError):
        require_conditional_puts("lab")


def test_a_store_whose_conditions_fail_is_no_store_without_them(store: SmallS3) -> None:
    store.times(100, refused(503, "SlowDown"), races)
    [row] = check_s3("lab")
    assert (row.state, row.detail) == ("failed", "two puts at once were answered 503 and 503")


def test_a_redirection_and_a_wrong_scheme_have_remedies_of_their_own(
    store: SmallS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.answers = lambda _: Answer(301, b"", {"Location": f"{store.address}/x"})
    [row] = check_s3("lab")
    assert row.detail.endswith("redirects to another place")
    assert "AWS_REGION" in (row.remedy or "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.address.replace("http:", "https:"))
    [row] = check_s3("lab")
    assert "no encrypted connection" in row.detail
    assert "http:// or https://" in (row.remedy or "")
    assert "AWS_CA_BUNDLE" in (row.remedy or "")
