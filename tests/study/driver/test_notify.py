"""The webhook against real local receivers: one that answers, one that fails, one that is slow, one that is gone."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
import threading

import pytest

from infra.stack.processes import free_ports
from study.driver.messages import WAITING, Notifier
from study.errors import UserError
from tests.support.services.receiver import receiver

FACTS = {"study": "demo", "state": "finished", "trials": 3, "best": {"trial": 1, "robust_accuracy": 0.5}}


def test_a_message_has_the_event_the_facts_and_the_time():
    with receiver([200]) as there:
        notifier = Notifier(there.url)
        notifier.send("finished", FACTS)
        assert notifier.close() == 0
    [(headers, body)] = there.got
    message = json.loads(body)
    assert message.pop("time").endswith("+00:00")
    assert message == {"event": "finished", **FACTS}
    assert headers["Content-Type"] == "application/json"
    assert "X-Agft-Signature" not in headers


def test_with_a_secret_the_body_is_signed():
    with receiver([200]) as there:
        notifier = Notifier.from_environment({"AGFT_WEBHOOK": there.url, "AGFT_WEBHOOK_SECRET": "s3cret"})
        notifier.send("paused", FACTS)
        assert notifier.close() == 0
    [(headers, body)] = there.got
    assert headers["X-Agft-Signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()


def test_a_server_error_is_tried_again_and_messages_stay_in_order():
    with receiver([500, 503, 200]) as there:
        notifier = Notifier(there.url, pauses=(0.01, 0.01, 0.01))
        notifier.send("new_best", {**FACTS, "trials": 1})
        notifier.send("finished", FACTS)
        assert notifier.close() == 0
    assert [json.loads(body)["event"] for _, body in there.got] == ["new_best"] * 3 + ["finished"]


def test_a_receiver_that_always_fails_gets_four_tries(caplog):
    with receiver([500]) as there:
        notifier = Notifier(there.url, pauses=(0.01, 0.01, 0.01))
        notifier.send("failed", FACTS)
        assert notifier.close() == 0
    assert len(there.got) == 4
    assert "HTTP 500" in caplog.text


@pytest.mark.parametrize("code", [400, 404, 302])
def test_a_refusal_or_a_redirect_is_not_tried_again(code):
    with receiver([code]) as there:
        notifier = Notifier(there.url, pauses=(0.01,) * 3)
        notifier.send("failed", FACTS)
        assert notifier.close() == 0
    assert len(there.got) == 1


def test_a_slow_receiver_delays_neither_sending_nor_closing():
    with receiver([200], until=(answers := threading.Event())) as there:
        notifier = Notifier(there.url)
        for _ in range(20):
            notifier.send("new_best", FACTS)
        left = notifier.close(0.2)
        answers.set()
    assert left == 20, "the first has no answer yet, and nobody waited for it"


def test_a_receiver_that_never_answers_is_given_up_after_the_timeout():
    with receiver([200], until=(answers := threading.Event())) as there:
        notifier = Notifier(there.url, timeout=0.2, pauses=())
        notifier.send("new_best", FACTS)
        left = notifier.close(60)
        answers.set()
    assert left == 0


def test_when_the_queue_is_full_the_oldest_message_goes():
    with receiver([200], until=(answers := threading.Event())) as there:
        notifier = Notifier(there.url)
        for number in range(WAITING + 20):
            notifier.send("new_best", {**FACTS, "trials": number})
        kept = [json.loads(body)["trials"] for body in notifier._waiting.queue]
        notifier.close(0)
        answers.set()
    assert len(kept) == WAITING
    assert kept[-1] == WAITING + 19
    assert kept[0] > 10


def test_nobody_there_harms_nothing_and_the_address_is_in_no_log(caplog):
    url = f"http://127.0.0.1:{free_ports(1)[0]}/hook?key=topsecret"
    notifier = Notifier(url, secret="s3cret", pauses=(0.01,))
    notifier.send("finished", FACTS)
    assert notifier.close() == 0
    assert "did not take a message" in caplog.text
    assert "topsecret" not in caplog.text + repr(notifier)
    with pytest.raises(TypeError, match="secrets"):
        pickle.dumps(notifier)


def test_without_an_address_nothing_happens():
    notifier = Notifier.from_environment({})
    notifier.send("finished", FACTS)
    assert notifier.close() == 0
    assert notifier._thread is None


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "hooks.example.org/topsecret", "http:///topsecret"]
)
def test_only_web_addresses_are_taken_and_a_wrong_one_is_not_shown(url):
    with pytest.raises(UserError, match="AGFT_WEBHOOK") as caught:
        Notifier(url)
    assert url not in str(caught.value)
