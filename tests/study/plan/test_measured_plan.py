"""What a plan says once a study of its kind has run: hours and bytes of full-length trials, as measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.plan.study import plan_of, plan_text
from study.spec.files import load_study
from study.store.rows import Proposal
from study.store.store import StudyStore
from tests.support.epochs import commit, epoch_record, weights

DEMO = Path(__file__).parents[3] / "study" / "recipes" / "demo.yaml"


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("AGFT_STUDY_DB", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_hours_and_bytes_come_from_full_length_trials_alone(home):
    spec = load_study(DEMO)
    assert plan_of(spec, home)["measured"] is None
    store = StudyStore(f"sqlite:///{home}/studies.db", "earlier")
    store.create(type(spec).model_validate({**spec.model_dump(mode="json"), "name": "earlier"}))
    token = store.acquire("a|1|0|m.b.1")
    for number, (state, seconds, size) in enumerate([("complete", 3000, 40), ("complete", 4200, 60), ("pruned", 9, 7)]):
        store.start_trial(token, Proposal(number, {}), {})
        kept = weights("s3://b/x", size=size * 1_000_000)
        commit(store, token, number, epoch_record(), latest=kept, best=weights("s3://b/y", size=10_000_000))
        store.finish_trial(token, number, state, device_seconds=seconds)
    plan = plan_of(spec, home)
    assert plan["measured"]["full_trials"] == 2
    assert plan["measured"]["device_seconds_per_trial"] == 3600
    assert plan["measured"]["at_most_device_hours"] == pytest.approx(8.0)
    assert plan["measured"]["bytes"] == 8 * 70_000_000
    text = plan_text(plan)
    assert "at most 8.00 device-hours (3600 s a full trial, measured on 2)" in text
    assert "560 MB of checkpoints: 70 MB a trial" in text
