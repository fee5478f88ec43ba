"""A trial's checkpoints when Ray starts it again: each group of workers writes in a place of its own."""

from __future__ import annotations

import itertools
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra import storage
from infra.services import Services
from study.artifacts.checkpoints import (
    attempt_prefix,
    claim_group,
    delete_superseded,
    fetch_state,
    group_prefix,
    keep_file,
    scratch_prefix,
    trial_prefix,
)
from trainers.wiring import Restored


@dataclass(frozen=True)
class Place:
    """One trial of a study that no other test has."""

    bucket: str
    slug: str
    folder: Path

    @property
    def trial(self) -> str:
        return trial_prefix(self.bucket, self.slug, 0)

    def claim(self, token: int, known: dict[str, str] | None = None) -> int:
        return claim_group(self.bucket, self.slug, 0, token, known)

    def keep(self, token: int, group: int, **contents: str) -> dict[str, str]:
        """Write `role=content` as that group; role -> URI."""
        path, uris = self.folder / secrets.token_hex(8), {}
        for role, content in contents.items():
            path.write_text(content)
            prefix = group_prefix(attempt_prefix(self.bucket, self.slug, 0, token), group)
            uris[role] = str(keep_file(prefix, path, role)["uri"])
        return uris

    def fetch(self, token: int, group: int) -> Restored | None:
        return fetch_state(group_prefix(attempt_prefix(self.bucket, self.slug, 0, token), group), self.folder)

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
    place.keep(7, 1, best="best of epoch 1", latest="epoch 1")
    assert place.claim(7) == 2
    place.keep(7, 1, best="best of epoch 2", latest="epoch 2")  # the first group only lost its network to Ray
    restored = place.fetch(7, 2)
    assert restored is not None
    assert restored.best is not None
    assert restored.state.read_text() == "epoch 1"
    assert content(restored.latest["uri"]) == "epoch 1"
    assert content(restored.best["uri"]) == "best of epoch 1"
    stored = storage.head(restored.best["uri"])
    assert stored is not None
    assert restored.best["sha256"] == stored.sha256, "what goes on record is what is there"

    place.keep(7, 2, best="best of epoch 2, again", latest="epoch 2, again")
    assert place.claim(8) == 1
    successor = place.fetch(8, 1)
    assert successor is not None
    assert successor.state.read_text() == "epoch 2, again"


def test_a_group_that_wrote_nothing_leaves_the_earlier_one_s_state(place: Place) -> None:
    place.claim(7)
    place.keep(7, 1, latest="epoch 1")
    assert [place.claim(7), place.claim(9)] == [2, 1]
    restored = place.fetch(9, 1)
    assert restored is not None
    assert (restored.state.read_text(), restored.best) == ("epoch 1", None)


def test_an_imported_trial_goes_on_from_what_is_on_record_elsewhere(place: Place) -> None:
    elsewhere = Place(place.bucket, f"{place.slug}-exported", place.folder)
    known = elsewhere.keep(3, 1, latest="epoch 4", best="best")
    place.claim(1, known)
    restored = place.fetch(1, 1)
    assert restored is not None
    assert restored.state.read_text() == "epoch 4"
    assert elsewhere.objects() == set(known.values()), "the other study keeps what it has"


def test_where_a_claim_is_not_kept_the_state_of_the_group_before_is_not_replaced_by_an_older_one(place: Place) -> None:
    place.claim(5)
    place.keep(5, 1, latest="epoch 1")
    place.claim(7)
    place.keep(7, 1, latest="epoch 2")
    storage.delete_prefix(scratch_prefix(place.bucket, place.slug))  # as if the store had ignored the condition
    assert place.claim(7) == 1
    restored = place.fetch(7, 1)
    assert restored is not None
    assert restored.state.read_text() == "epoch 2"


@pytest.mark.parametrize("group", [1, 2], ids=["killed-before-its-first-report", "reported"])
def test_of_a_trial_that_has_ended_what_is_on_record_is_kept(place: Place, group: int) -> None:
    place.claim(7)
    first = place.keep(7, 1, best="best", latest="epoch 1")
    place.claim(7)
    second = place.keep(7, 2, best="best", latest="epoch 2")
    record = first if group == 1 else second
    delete_superseded(place.trial, record)
    assert place.objects() == set(record.values())


def test_without_a_record_the_newest_is_kept(place: Place) -> None:
    place.claim(7)
    place.keep(7, 1, latest="epoch 1", best="best")
    place.claim(7)
    delete_superseded(place.trial, {})
    kept = {"latest": "epoch 1", "best": "best"}
    assert {Path(uri).stem: content(uri) for uri in place.objects()} == kept
    assert all("/a000007.002/" in uri for uri in place.objects())
