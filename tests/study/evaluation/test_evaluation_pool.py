"""Workers that share a cluster with other work: who has some of them goes on with those."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from infra.cluster import cluster
from study.evaluation.executor import StudyExecutor
from study.evaluation.pool import Hands, Job, Pool
from study.spec.files import parse_study
from tests.support.study_files import minimal

JOBS = [Job(f"greeting {number}", ("all",), 1.0, "hello", ()) for number in range(6)]


@pytest.fixture
def two_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster.connect(num_cpus=2)
    yield
    cluster.disconnect()


def test_two_pools_that_each_have_one_of_two_workers_do_not_wait_for_each_other(two_cpus: None) -> None:
    holder = ray.remote(num_cpus=1)(lambda: time.sleep(3600)).remote()
    first = Pool(Hands(2, 1.0, 0.0), {}, print)
    assert ray.wait([worker.up for worker in first._workers], timeout=120)[0], "one worker has the free core"
    second = Pool(Hands(2, 1.0, 0.0), {}, print)
    ray.cancel(holder, force=True)
    done: dict[str, list[str]] = {"first": [], "second": []}
    pools = {"first": first, "second": second}

    def work(name: str) -> None:
        pools[name].run(JOBS, lambda job, _: done[name].append(job.name))
        pools[name].close()

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert {name: sorted(names) for name, names in done.items()} == {name: [job.name for job in JOBS] for name in pools}


def test_remarks_about_a_part_are_indented_as_the_part_is() -> None:
    said: list[str] = []
    spec = parse_study(minimal(), source="study.yaml")
    with StudyExecutor(spec.model, spec.resources, "nowhere", said.append) as executor:
        for what in ("measuring the unmodified CLIP", "  final"):
            executor.measure(spec.evaluate.final.suite("final", spec.data.final), {}, what)
            executor.say("workers: 2 of 1 CPU")
    assert said == ["workers: 2 of 1 CPU", "  workers: 2 of 1 CPU"]
