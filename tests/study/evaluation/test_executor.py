"""The one executor: a measuring that loses its process, then a worker, goes on where it was, with the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from PIL import Image

from infra import storage
from infra.cluster import cluster
from infra.services import Services
from study.errors import UserError
from study.evaluation import pool
from study.evaluation.executor import measure_unmodified
from study.promotion.proof import Prover
from study.results.ranking import Measurement, summary
from study.spec.config import StudyConfig
from study.spec.files import load_study
from tests.support.promoted import RADIUS, STUDY
from trainers.evaluation.measure import evaluate_sets
from trainers.model.pretrained import load_clip
from trainers.schema.suite import Suite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = str(Path(__file__).parents[2] / "support" / "measure_once.py")
UNITS = 2  # of 512 images, and of 208 or 88
HELD = 1  # units that are finished when the process is killed


@pytest.fixture
def here(service_environment: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return service_environment


@pytest.fixture
def workers(here: Services) -> Iterator[None]:
    cluster.connect(num_cpus=1)
    yield
    cluster.disconnect()


def study(folder: Path, seed: int, **data: Any) -> Path:
    """A study file; the seed makes its evaluations other ones than any test's before."""
    attack = {"attack": {"eps": [RADIUS], "steps": 4}, "seed": seed}
    roles = {"train": "tiny-color-shapes", "dev": ["tiny-shapes"], "confirm": ["tiny-colors"],
             "final": ["tiny-digits"]}  # fmt: skip
    path = folder / "study.yaml"
    plain = {**STUDY, "name": "once", "data": {**roles, **data}, "evaluate": {"select": attack, "final": attack}}
    path.write_text(yaml.safe_dump(plain))
    return path


def kept(bucket: str) -> dict[str, bytes]:
    """Every unit below evaluations/. Its header holds who made it and when, so that its bytes are another's if it is
    computed again."""
    found = [each.uri for each in storage.list_objects(f"s3://{bucket}/evaluations/") if "/units/" in each.uri]
    return {uri: data[0] for uri in found if (data := storage.get_bytes(uri)) is not None}


def killed_midway(path: Path, role: str, bucket: str) -> tuple[dict[str, bytes], str]:
    """Measure in a process that is killed with some units finished; those, and what it said."""
    before = kept(bucket).keys()
    with subprocess.Popen(
        [sys.executable, SCRIPT, str(path), role], env={**os.environ, "PYTHONPATH": "."}, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as process:  # fmt: skip
        family = psutil.Process(process.pid)
        try:
            while process.poll() is None and len(kept(bucket).keys() - before) < HELD:
                time.sleep(0.02)
            assert process.poll() is None, "it was to be killed, and has ended"
        finally:
            every = [*family.children(recursive=True), family] if process.poll() is None else []
            process.send_signal(signal.SIGKILL)
            for each in every:  # the services of Ray, which outlive their driver
                if each.is_running():
                    each.kill()
        assert process.stdout is not None
        said = process.stdout.read()
    return {uri: data for uri, data in kept(bucket).items() if uri not in before}, said


def kill_a_worker(lost: list[int], over: threading.Event) -> None:
    """The first one that is seen measuring."""
    while not over.is_set() and not lost:
        for process in psutil.Process().children(recursive=True):
            try:
                if "EvaluationWorker.measure" in " ".join(process.cmdline()):
                    process.kill()
                    lost.append(process.pid)
                    return
            except psutil.Error:
                continue
        time.sleep(0.02)


def measure(spec: StudyConfig, role: str, bucket: str, said: list[str]) -> Measurement:
    if role == "unmodified":
        return measure_unmodified(spec, bucket, said.append)
    prover = Prover(spec, bucket, said.append)
    try:
        return prover.measure("confirm", {"clip": None})["clip"].result
    finally:
        prover.close()


def whole(spec: StudyConfig, suite: Suite) -> Mapping[str, Any]:
    """The same sets, each measured at a time in this process."""
    torch.set_num_threads(1)
    counts = evaluate_sets(load_clip(spec.model), suite)
    return summary(
        {name: {eps: score.model_dump(mode="json") for eps, score in each.scores().items()}
         for name, each in counts.items()}
    )  # fmt: skip


@pytest.mark.parametrize(("role", "seed"), [("unmodified", 11), ("confirm", 12)])
def test_what_was_finished_before_a_kill_is_not_computed_again(
    here: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, seed: int
) -> None:
    path, bucket = study(tmp_path, seed), here.bucket
    finished, told = killed_midway(path, role, bucket)
    assert HELD <= len(finished) < UNITS
    what = "measuring the unmodified CLIP" if role == "unmodified" else "  confirm"
    assert f"{what}: 1 of {UNITS} units, about " in told
    assert " left" in told

    spec, said, lost, over = load_study(path), [], [], threading.Event()
    cluster.connect(num_cpus=1)
    killer = threading.Thread(target=kill_a_worker, args=(lost, over))
    killer.start()
    try:
        found = measure(spec, role, bucket, said)
        over.set()
        now = kept(bucket)
        monkeypatch.setattr(pool.Pool, "run", None)  # whoever would compute anything more fails
        if role == "confirm":  # a study's unmodified CLIP hashes images again, by workers
            assert measure(spec, role, bucket, said) == found
    finally:
        over.set()
        killer.join()
        cluster.disconnect()
    assert lost
    assert any("a worker is gone" in line and "another one takes its place" in line for line in said)
    assert {uri: now[uri] for uri in finished} == finished, "not one finished unit was made again"
    folder = next(iter(finished)).partition("/units/")[0]
    assert len([uri for uri in now if uri.startswith(f"{folder}/")]) == UNITS

    how = spec.evaluate.select if role == "unmodified" else spec.evaluate.final
    sets = spec.data.dev if role == "unmodified" else spec.data.confirm
    assert found == whole(spec, how.suite(role, sets)), "in units as in one piece"


def test_a_study_whose_roles_share_images_is_refused(workers: None, here: Services, tmp_path: Path) -> None:
    for copy in ("one", "other"):
        for number in range(6):
            folder = tmp_path / copy / f"class-{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (40 * number, 9, 90)).save(folder / f"{copy}-{number}.png")
    roles = {"dev": [f"folder:{tmp_path}/one"], "final": [f"folder:{tmp_path}/other"]}
    spec = load_study(study(tmp_path, 13, **roles))
    with pytest.raises(UserError, match=r"data\.dev 'folder:.*one' and data\.final 'folder:.*other' share 6 images"):
        measure_unmodified(spec, here.bucket, print)
