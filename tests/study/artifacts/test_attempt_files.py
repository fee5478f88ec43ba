"""A trial's checkpoints when Ray starts it again: each group of workers writes in a place of its own."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from infra import storage
from infra.services import Services
from study.artifacts.checkpoints import (
    SharedPrefix,
    attempt_prefix,
    begin_group,
    delete_superseded,
    fetch_state,
    inherit,
    keep_file,
    scratch_prefix,
    trial_prefix,
)
from study.driver.away import Patience
from tests.support.services.gate import gate
from trainers.schema.records import At, Weights
from trainers.wiring import Restored


@dataclass(frozen=True)
class Place:
    """One trial of a study that no other test has."""

    bucket: str
    slug: str
    folder: Path
    said: list[str] = field(default_factory=list)
    best: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def trial(self) -> str:
        return trial_prefix(self.bucket, self.slug, 0)

    def claim(self, token: int, known: dict[str, Weights] | None = None) -> int:
        return begin_group((self.bucket, self.slug, 0, token), known or {}, self.said.append)

    def keep(self, token: int, group: int, *, stored: int = 0, **contents: str) -> dict[str, Weights]:
        """Write `role=content` as that group, each of the epoch that its first number says; role -> file."""
        path, kept = self.folder / secrets.token_hex(8), {}
        attempt, epochs = attempt_prefix(self.bucket, self.slug, 0, token), {}
        for role, content in contents.items():
            path.write_text(content)
            epochs[role] = int(re.findall(r"\d+", content)[0])
            self.best[token, group] = epochs.get("best", self.best.get((token, group), 1))
            best = self.best[token, group]
            kept[role] = keep_file(attempt, group, path, role, At(epochs[role], best), stored)
        return kept

    def fetch(self, token: int, group: int) -> Restored | None:
        return fetch_state(attempt_prefix(self.bucket, self.slug, 0, token), group, self.folder)

    def objects(self) -> set[str]:
        return {stored.uri for stored in storage.list_objects(self.trial)}


@pytest.fixture
def place(service_environment: Services, tmp_path: Path) -> Place:
    return Place(service_environment.bucket, f"groups-{secrets.token_hex(4)}", tmp_path)


def content(uri: str) -> str:
    found = storage.get_bytes(uri)
    assert found is not None, uri
    return found[0].decode()


def test_a_new_trial_has_nothing_to_go_on_from_and_a_place_of_its_own(place: Place) -> None:
    assert place.claim(7) == 1
    assert place.fetch(7, 1) is None


def test_groups_that_start_together_have_different_places(place: Place) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(place.claim, itertools.repeat(7, 8))) == list(range(1, 9))


def test_what_a_group_writes_that_ray_gave_up_changes_nothing_of_its_successor(place: Place) -> None:
    place.claim(7)
    place.keep(7, 1, best="best of 1", latest="epoch 1")
    assert place.claim(7) == 2
    place.keep(7, 1, best="best of 2", latest="epoch 2")  # the first group only lost its network to Ray
    restored = place.fetch(7, 2)
    assert restored is not None
    assert restored.state.read_text() == "epoch 1"
    assert content(restored.latest.uri) == "epoch 1"
    assert content(restored.best.uri) == "best of 1"
    stored = storage.head(restored.best.uri)
    assert stored is not None
    assert restored.best.sha256 == stored.sha256, "what goes on record is what is there"

    place.keep(7, 2, best="best of 2, again", latest="epoch 2, again")
    assert place.claim(8) == 1
    successor = place.fetch(8, 1)
    assert successor is not None
    assert successor.state.read_text() == "epoch 2, again"


def test_a_group_that_wrote_nothing_leaves_the_earlier_one_s_state(place: Place) -> None:
    place.claim(7)
    place.keep(7, 1, best="best of 1", latest="epoch 1")
    assert [place.claim(7), place.claim(9)] == [2, 1]
    restored = place.fetch(9, 1)
    assert restored is not None
    assert (restored.state.read_text(), content(restored.best.uri)) == ("epoch 1", "best of 1")


def test_an_imported_trial_goes_on_from_what_is_on_record_elsewhere(place: Place) -> None:
    elsewhere = Place(place.bucket, f"{place.slug}-exported", place.folder)
    known = elsewhere.keep(3, 1, best="best of 4", latest="epoch 4")
    place.claim(1, known)
    restored = place.fetch(1, 1)
    assert restored is not None
    assert restored.state.read_text() == "epoch 4"
    assert elsewhere.objects() == {each.uri for each in known.values()}, "the other study keeps what it has"


def test_where_a_claim_is_not_kept_the_state_of_the_group_before_is_not_replaced_by_an_older_one(place: Place) -> None:
    place.claim(5)
    place.keep(5, 1, best="best of 1", latest="epoch 1")
    place.claim(7)
    place.keep(7, 1, best="best of 1", latest="epoch 2")
    storage.delete_prefix(scratch_prefix(place.bucket, place.slug))  # as if the store had ignored the condition
    assert place.claim(7) == 1
    restored = place.fetch(7, 1)
    assert restored is not None
    assert restored.state.read_text() == "epoch 2"


def test_a_state_from_inside_an_epoch_is_gone_on_from_also_before_there_are_best_weights(place: Place) -> None:
    def halfway(token: int, at: At) -> None:
        path = place.folder / "halfway"
        path.write_text(f"{at.steps} updates after epoch {at.epoch}")
        keep_file(attempt_prefix(place.bucket, place.slug, 0, token), 1, path, "latest", at, 0)

    place.claim(5)
    for updates in (100, 200, 1000):
        halfway(5, At(0, 0, updates))
    assert len(place.objects()) == 2, "the last two are kept"
    place.claim(6)
    first = place.fetch(6, 1)
    assert first is not None
    assert (first.state.read_text(), first.best) == ("1000 updates after epoch 0", None)
    place.keep(6, 1, best="best of 1", latest="epoch 1")
    halfway(6, At(1, 1, 40))
    place.claim(7)
    then = place.fetch(7, 1)
    assert then is not None
    assert then.best is not None
    assert (then.state.read_text(), content(then.best.uri)) == ("40 updates after epoch 1", "best of 1")


@pytest.mark.parametrize("group", [1, 2], ids=["killed-before-its-first-report", "reported"])
def test_of_a_trial_that_has_ended_what_is_on_record_is_kept(place: Place, group: int) -> None:
    place.claim(7)
    first = place.keep(7, 1, best="best of 1", latest="epoch 1")
    place.claim(7)
    second = place.keep(7, 2, best="best of 1", latest="epoch 2")
    record = first if group == 1 else second
    delete_superseded(place.trial, {role: each.uri for role, each in record.items()})
    assert place.objects() == {each.uri for each in record.values()}


def test_without_a_record_the_newest_is_kept(place: Place) -> None:
    place.claim(7)
    place.keep(7, 1, best="best of 1", latest="epoch 1")
    place.claim(7)
    delete_superseded(place.trial, {})
    kept = {"latest": "epoch 1", "best": "best of 1"}
    assert {Path(uri).stem.partition("-")[0]: content(uri) for uri in place.objects()} == kept
    assert all("/a000007.002/" in uri for uri in place.objects())


def test_the_last_two_states_stay_and_the_one_on_record(place: Place) -> None:
    place.claim(7)
    for epoch in range(1, 6):
        best = {"best": f"best of {epoch}"} if epoch in (1, 2, 5) else {}
        place.keep(7, 1, **best, latest=f"epoch {epoch}", stored=1)
    kept = {"best of 1", "epoch 1", "best of 2", "epoch 4", "best of 5", "epoch 5"}
    assert {content(uri) for uri in place.objects()} == kept


def put(uri: str, body: bytes, **more: object) -> None:
    """As another program does."""
    bucket, key = storage.split_uri(uri)
    storage.client().put_object(Bucket=bucket, Key=key, Body=body, **more)  # type: ignore[arg-type]


DAMAGES: dict[str, Callable[[Weights], None]] = {
    "cut short": lambda found: put(found.uri, b"epo", Metadata={"sha256": found.sha256}),
    "altered": lambda found: put(found.uri, b"epoch 9", Metadata={"sha256": found.sha256}),
    "replaced": lambda found: put(found.uri, b"a state of another program"),
    "deleted": lambda found: storage.delete(found.uri),
}


@pytest.mark.parametrize("role", ["latest", "best"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_it_is_said(place: Place, damage: str, role: str) -> None:
    place.claim(7)
    place.keep(7, 1, best="best of 1", latest="epoch 1")
    newest = place.keep(7, 1, best="best of 2", latest="epoch 2")
    DAMAGES[damage](newest[role])
    for group in (2, 3):  # who comes after that does not take it either
        assert place.claim(7) == group
        restored = place.fetch(7, group)
        assert restored is not None
        assert restored.state.read_text() == "epoch 1"
        assert content(restored.best.uri) == "best of 1"
    assert len(place.said) == (0 if (damage, role) == ("deleted", "latest") else 1), (
        "of a deleted one nothing is left to see"
    )
    assert all("passed over" in line for line in place.said)


def test_a_trial_whose_every_checkpoint_is_damaged_starts_anew_and_it_is_said(place: Place) -> None:
    place.claim(7)
    only = place.keep(7, 1, best="best of 1", latest="epoch 1")
    DAMAGES["altered"](only["latest"])
    assert place.claim(8, only) == 1
    assert place.fetch(8, 1) is None
    assert "starts anew" in place.said[-1]


def test_who_waits_for_s3_between_claiming_and_copying_takes_one_number(
    place: Place, service_environment: Services
) -> None:
    """Also through two outages in the middle of copying."""
    place.claim(7)
    place.keep(7, 1, best="best of 1", latest="epoch 1")
    with gate(service_environment.s3_endpoint) as endpoint, pytest.MonkeyPatch.context() as through:
        through.setenv("AWS_ENDPOINT_URL", endpoint.address)
        waits: list[str] = []

        def tell(reason: str) -> str:
            waits.append(reason)
            endpoint.habit = "busy" if len(waits) < 2 else ""
            return "continue"

        def repeat(step: Callable[..., Any], *given: Any) -> Any:
            endpoint.habit = "busy" if step is inherit else ""
            return Patience(tell, 60.0)(step, *given)

        assert begin_group((place.bucket, place.slug, 0, 7), {}, place.said.append, repeat) == 2
    assert len([reason for reason in waits if reason]) == 2
    restored = place.fetch(7, 2)
    assert restored is not None
    assert restored.state.read_text() == "epoch 1"
    claims = storage.list_objects(f"{scratch_prefix(place.bucket, place.slug)}/claims/")
    assert [each.uri.rpartition("/")[2] for each in claims] == ["a000007.001", "a000007.002"]


def test_a_store_that_refuses_conditions_holds_claims_and_shared_files(
    place: Place, service_environment: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gate(service_environment.s3_endpoint) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.address)
        endpoint.habit = "no-conditions"
        assert [place.claim(7), place.claim(7)] == [1, 2]
        file, shared = place.folder / "file", SharedPrefix(f"s3://{place.bucket}/{place.slug}")
        for words in ("first", "second"):
            file.write_text(words)
            shared.put(file, "rows.safetensors")
        assert shared.get("rows.safetensors", file)
        assert file.read_text() == "first"
    assert endpoint.refused
