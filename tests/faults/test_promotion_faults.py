"""A promotion is killed between every pair of writes: the old champion stays, and the same command completes it.

Studies and checkpoints of tests/support/promoted.py; S3, MLflow, the database and SIGKILL are real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.failpoint import FAILPOINTS
from study.models.head import history, read_head, read_manifest, versions
from study.models.looks import read_looks
from study.store import requests as promotion_rows
from study.store.store import StudyStore
from tests.support.promoted import STUDY
from tests.support.promotions import World, check_chain, promotions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
POINTS = [name for name in FAILPOINTS if name.startswith(("promotion.", "head."))]
MOVED = ("head.moved", "promotion.registered", "promotion.aliased")  # HEAD names the new champion
ENDED = MOVED[1:]  # the store has the outcome; MLflow follows
LOOKS = ("promotion.access-counted",)  # needs final sets that nobody has looked at, so workers
SCRIPT = str(Path(__file__).parents[1] / "support" / "promote_once.py")


@pytest.fixture(scope="module")
def world(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything of checkpoints 0.2 and 1.0 is measured: what follows needs no worker."""
    with promotions(stack, tmp_path_factory.mktemp("cut"), cpus=2) as world:
        for name, alpha in (("measured-one", 0.2), ("measured-two", 1.0)):
            assert world.promote(world.study(name, {0: world.trial(alpha)}, model="measured")).state == "promoted"
        yield world


def killed(store: StudyStore, point: str) -> None:
    """Promote in a process that dies there."""
    more = ["--ray"] if point in LOOKS else []
    done = subprocess.run(
        [sys.executable, SCRIPT, store.name, *more], env={**os.environ, "AGFT_FAILPOINT": point, "PYTHONPATH": "."},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, f"{point} was not passed:\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("point", POINTS)
def test_a_promotion_killed_at_a_failpoint_leaves_the_old_champion_and_is_completed(world: World, point: str) -> None:
    model = "cut-" + point.replace(".", "-")
    world.promote(world.study(f"{model}-old", {0: world.trial(0.2)}, model=model))
    changed: dict[str, Any] = {}
    if point in LOOKS:
        changed["evaluate"] = {**STUDY["evaluate"], "final": {**STUDY["evaluate"]["final"], "seed": 7}}
    store = world.study(f"{model}-new", {0: world.trial(1.0)}, model=model, **changed)
    killed(store, point)

    head, _ = read_head(world.bucket, model)
    moved = point in MOVED
    assert (head.champion, head.generation) == ((2, 2) if moved else (1, 1))
    assert [move.generation for move in history(world.bucket, model)] == list(range(head.generation, 0, -1))
    assert read_manifest(world.bucket, model, head.champion).version == head.champion
    [row] = promotion_rows.promotions(store)
    assert row["state"] == ("promoted" if point in ENDED else "started")
    counted = len(promotion_rows.accesses(store))
    assert counted == (point in LOOKS), "a look is counted before it happens"

    assert world.promote(store).state == ("kept" if moved else "promoted")
    check_chain(world, model, 2)
    assert read_head(world.bucket, model)[0].champion == 2, "the version that was reserved is the one that ships"
    assert {number: "manifest.json" in files for number, files in versions(world.bucket, model).items()} == {
        1: True, 2: True,
    }  # fmt: skip
    states = [row["state"] for row in promotion_rows.promotions(store)]
    assert states == (["promoted", "kept"] if moved else ["broken", "promoted"])
    assert len(promotion_rows.accesses(store)) == 2 * counted
    looks = [record["number"] for record in read_looks(world.bucket, model)]
    assert looks == ([1, 2] if moved else [1]), "cut short, it is the same look; beside a new champion another one"
