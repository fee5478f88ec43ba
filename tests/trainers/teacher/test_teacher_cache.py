"""The teacher's cache: computed once, whoever asks; the same bytes for any number of workers; no fault fails a run."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

from study.artifacts.checkpoints import SharedPrefix
from tests.support.small import image_set, pgd_suite, small_clip, small_sets, trial
from trainers.data import ImageSet
from trainers.evaluation.scorer import embed_images
from trainers.files import FileLock
from trainers.model.robust import RobustCLIP
from trainers.model.weights import save_weights
from trainers.schema.records import Decision
from trainers.schema.training import OptimizerConfig, TrainConfig
from trainers.teacher.rows import Writer
from trainers.teacher.teacher import key_parts, teacher_embeddings
from trainers.training.loop import train

CPU = torch.device("cpu")
IMAGES = 1000  # 32 micro-batches, the last one short
COMPUTED, OPENED = 34, 1  # forwards: the width, all, the check of a few rows; the check alone


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return image_set("pictures", IMAGES)


@pytest.fixture(scope="module")
def truth(images: ImageSet) -> Tensor:
    return embed_images(RobustCLIP(small_clip()), images.images, torch.arange(IMAGES), CPU)


class Counted:
    """The small model, and how many forwards it has done; each may be made slow, or do something."""

    def __init__(self, seed: int = 0, *, seconds: float = 0.0) -> None:
        self.model, self.forwards = RobustCLIP(small_clip(seed)), 0
        self.seconds = seconds
        self.model.visual.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.forwards += 1
        time.sleep(self.seconds)

    def embeddings(self, images: ImageSet, folder: Path, shared: SharedPrefix | None = None) -> Tensor:
        self.forwards = 0
        return teacher_embeddings(self.model, images, device=CPU, shared=shared, folder=folder)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def file_in(folder: Path) -> Path:
    (found,) = folder.glob("teacher/*/embeddings.safetensors")
    return found


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("teacher/*/*")} - {"lock", "embeddings.safetensors"}


def test_the_cache_is_what_the_model_computes_and_the_second_time_it_is_only_checked(
    counted: Counted, images: ImageSet, truth: Tensor, tmp_path: Path
) -> None:
    first = counted.embeddings(images, tmp_path)
    assert counted.forwards == COMPUTED
    second = counted.embeddings(images, tmp_path)
    assert counted.forwards == OPENED
    assert torch.equal(first, truth)
    assert torch.equal(second, truth)
    assert (first.dtype, first.device, first.requires_grad) == (torch.float32, CPU, False)
    index = torch.tensor([999, 0, 500])
    assert torch.equal(second[index], truth[index])


def test_a_student_in_half_precision_gets_the_exact_teacher_and_stays_as_it_is(
    counted: Counted, images: ImageSet, truth: Tensor, tmp_path: Path
) -> None:
    counted.model.precision = "bf16"
    assert torch.equal(counted.embeddings(images, tmp_path), truth)
    assert counted.model.precision == "bf16"


def test_other_weights_have_a_cache_of_their_own(images: ImageSet, truth: Tensor, tmp_path: Path) -> None:
    ours, theirs = Counted(0), Counted(1)
    ours.embeddings(images, tmp_path)
    assert not torch.allclose(theirs.embeddings(images, tmp_path), truth)
    assert len(list(tmp_path.glob("teacher/*/embeddings.safetensors"))) == 2
    assert torch.equal(ours.embeddings(images, tmp_path), truth)
    assert ours.forwards == OPENED


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20_000] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def wrong_manifest(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"float32", b"float16"))


def anothers(path: Path) -> None:
    """The file of other weights under this name."""
    Counted(1).embeddings(image_set("pictures", IMAGES), path.parents[2] / "other")
    shutil.copy(file_in(path.parents[2] / "other"), path)


def forged(path: Path) -> None:
    """Whole in every respect, but not what this model computes: only computing rows again can tell."""
    model, pictures = Counted().model, image_set("pictures", IMAGES)
    rows = embed_images(model, pictures.images, torch.arange(IMAGES), CPU)
    writer = Writer(path, (IMAGES, rows.shape[1]), key_parts(model, pictures), batch=32)
    writer.add(rows * 1.01)
    writer.finish()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "does not have the SHA-256"),
        (cut, "bytes are not those of"),
        (wrong_manifest, "made from something else: dtype"),
        (anothers, "made from something else: weights"),
        (forged, "rows computed again differ by 0.01"),
        (a_folder, "cannot be read"),
    ],
)
def test_a_bad_cache_is_found_named_once_and_made_again(
    counted: Counted,
    images: ImageSet,
    truth: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: object,
    reason: str,
) -> None:
    counted.embeddings(images, tmp_path)
    assert callable(damage)
    damage(file_in(tmp_path))
    assert torch.equal(counted.embeddings(images, tmp_path), truth)
    own = [record for record in caplog.records if record.name.startswith("trainers.")]
    assert [record.levelname for record in own] == ["WARNING"]
    assert reason in own[0].getMessage()
    counted.embeddings(images, tmp_path)
    assert counted.forwards == OPENED
    assert not leftovers(tmp_path)


def _ask(folder: str, seconds: float, name: str, others: int) -> None:
    """In a process of its own: ask when all are there; leave the number of forwards and the rows."""
    slow, pictures = Counted(seconds=seconds), image_set("pictures", IMAGES)
    Path(folder, f"{name}.ready").touch()
    while len(list(Path(folder).glob("*.ready"))) < others:
        time.sleep(0.005)
    rows = slow.embeddings(pictures, Path(folder))
    torch.save((slow.forwards, rows.clone()), Path(folder, f"{name}.pt"))


def test_two_processes_at_once_compute_once(truth: Tensor, tmp_path: Path) -> None:
    processes = [
        multiprocessing.get_context("spawn").Process(target=_ask, args=(str(tmp_path), 0.03, name, 2)) for name in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    (one, ours), (two, theirs) = (torch.load(tmp_path / f"{name}.pt") for name in "ab")
    assert sorted((one, two)) == [OPENED, COMPUTED]
    assert torch.equal(ours, truth)
    assert torch.equal(theirs, truth)


def test_after_a_process_was_killed_while_computing_the_next_one_succeeds(
    counted: Counted, images: ImageSet, truth: Tensor, tmp_path: Path
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_ask, args=(str(tmp_path), 0.2, "a", 1))
    process.start()
    wait_until(lambda: bool(leftovers(tmp_path)))
    time.sleep(0.5)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert leftovers(tmp_path)
    assert torch.equal(counted.embeddings(images, tmp_path), truth)
    assert counted.forwards == COMPUTED
    assert not leftovers(tmp_path)


def test_a_pass_that_was_interrupted_goes_on_where_it_was_and_makes_the_same_file(
    counted: Counted, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.teacher.rows.NOTE_SECONDS", -1.0)
    counted.embeddings(images, tmp_path / "whole")

    def stop(*_: object) -> None:
        if counted.forwards == 20:  # one for the width, two blocks of eight, and some of the third
            raise KeyboardInterrupt

    with counted.model.visual.register_forward_hook(stop), pytest.raises(KeyboardInterrupt):
        counted.embeddings(images, tmp_path / "cut")
    assert leftovers(tmp_path / "cut") == {"embeddings.safetensors.part", "embeddings.safetensors.part.json"}
    counted.embeddings(images, tmp_path / "cut")
    assert counted.forwards == COMPUTED - 16
    assert not leftovers(tmp_path / "cut")
    assert file_in(tmp_path / "cut").read_bytes() == file_in(tmp_path / "whole").read_bytes()


def wait_until(ready: object, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def _rank(rank: int, folder: str) -> None:
    """All that two ranks can meet: one disk, two, a head start, no disk, a lock of somebody else."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        counted, pictures, root = Counted(), image_set("pictures", IMAGES), Path(folder)
        answers = {}

        def ask(name: str, folder: Path) -> None:
            answers[name] = (counted.embeddings(pictures, folder).clone(), counted.forwards)

        ask("one disk", root / "together")
        ask("again", root / "together")
        ask("two disks", root / f"alone-{rank}")
        ask("head start", root / ("together" if rank == 0 else "late"))
        (root / "occupied").touch()
        ask("no disk", root / ("fine" if rank == 0 else "occupied"))
        ask("no disks", root / "occupied")
        (root / f"waiting-{rank}").touch()
        ask("waited", root / "locked")
        torch.save(answers, root / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_give_the_bytes_of_one_and_wait_for_others_without_blocking_each_other(
    counted: Counted, images: ImageSet, truth: Tensor, tmp_path: Path
) -> None:
    counted.embeddings(images, tmp_path / "one")
    path = tmp_path / "locked" / file_in(tmp_path / "one").relative_to(tmp_path / "one")
    path.parent.mkdir(parents=True)
    theirs = FileLock(path.with_name("lock"))
    assert theirs.acquire()
    context = multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2, join=False)
    done = threading.Event()

    def another_process() -> None:  # that holds the lock for a second after the ranks came to it
        wait_until(lambda: len(list(tmp_path.glob("waiting-*"))) == 2 or done.is_set())
        time.sleep(1)
        shutil.copy(file_in(tmp_path / "one"), path)
        theirs.release()

    other = threading.Thread(target=another_process)
    other.start()
    try:
        while not context.join(timeout=5):
            pass
    finally:
        done.set()
        other.join()
    for rank in range(2):
        answers = torch.load(tmp_path / f"{rank}.pt")
        assert {name for name, (rows, _) in answers.items() if not torch.equal(rows, truth)} == set()
        forwards = {name: number for name, (_, number) in answers.items()}
        assert 17 <= forwards["one disk"] <= 18  # a half, the check; the owner also needs the width
        assert forwards["again"] == forwards["waited"] == OPENED
        assert 16 <= forwards["no disks"] <= 17
    expected = file_in(tmp_path / "one").read_bytes()
    for name in ("together", "alone-0", "alone-1", "late", "fine"):
        assert file_in(tmp_path / name).read_bytes() == expected, name
        assert not leftovers(tmp_path / name)


def test_a_second_machine_downloads_instead_of_computing(
    counted: Counted, images: ImageSet, truth: Tensor, tmp_path: Path, prefix: str
) -> None:
    shared = SharedPrefix(prefix)
    counted.embeddings(images, tmp_path / "first", shared)
    assert counted.forwards == COMPUTED
    assert torch.equal(counted.embeddings(images, tmp_path / "second", shared), truth)
    assert counted.forwards == OPENED
    assert file_in(tmp_path / "first").read_bytes() == file_in(tmp_path / "second").read_bytes()
    assert not leftovers(tmp_path / "second")


def test_what_was_computed_without_a_store_is_shared_when_there_is_one(
    counted: Counted, images: ImageSet, tmp_path: Path, prefix: str
) -> None:
    counted.embeddings(images, tmp_path / "first")
    counted.embeddings(images, tmp_path / "first", SharedPrefix(prefix))
    assert counted.forwards == OPENED
    counted.embeddings(images, tmp_path / "second", SharedPrefix(prefix))
    assert counted.forwards == OPENED


@pytest.mark.parametrize("how", ["another object with the old checksum", "a whole object of wrong content"])
def test_a_bad_object_in_the_store_is_replaced(
    counted: Counted,
    images: ImageSet,
    truth: Tensor,
    tmp_path: Path,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    from infra import storage

    shared = SharedPrefix(prefix)
    counted.embeddings(images, tmp_path / "first", shared)
    (stored,) = storage.list_objects(prefix)
    head = storage.head(stored.uri)
    assert head is not None
    assert head.sha256 is not None
    if how == "a whole object of wrong content":
        storage.put_bytes(stored.uri, b"something else")
    else:
        bucket, key = storage.split_uri(stored.uri)
        claim = {"sha256": head.sha256}
        storage.client().put_object(Bucket=bucket, Key=key, Body=b"something else", Metadata=claim)
    caplog.clear()
    assert torch.equal(counted.embeddings(images, tmp_path / "second", shared), truth)
    assert counted.forwards == COMPUTED
    assert [record.levelname for record in caplog.records if record.name.startswith(("trainers", "agft"))] == [
        "WARNING"
    ]
    counted.embeddings(images, tmp_path / "third", shared)
    assert counted.forwards == OPENED


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    with small_sets():
        yield save_weights(tmp_path / "start.safetensors", small_clip())


def test_training_goes_on_while_the_store_is_down(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # discard: nobody listens
    config = trial(weights, train=TrainConfig(epochs=1, batch_size=40, threads=1))
    shared = SharedPrefix("s3://nowhere")
    result = train(config, report=lambda _: Decision.CONTINUE, workdir=tmp_path / "run", shared=shared)
    assert result.outcome == "finished"
    warnings = [record for record in caplog.records if record.name.startswith("trainers.teacher")]
    assert len(warnings) == 1
    assert "cannot be used" in warnings[0].getMessage()
    assert file_in(tmp_path / "cache")


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond `size`, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_the_disk_has_no_room_the_embeddings_are_held_in_memory(
    counted: Counted, images: ImageSet, truth: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), largest_file(IMAGES * 16):
        assert torch.equal(counted.embeddings(images, tmp_path), truth)
    assert counted.forwards == COMPUTED - 1  # nothing to check
    assert ["held in memory" in record.getMessage() for record in caplog.records] == [True]
    assert not leftovers(tmp_path)
    assert torch.equal(counted.embeddings(images, tmp_path), truth)
    assert counted.forwards == COMPUTED
    assert file_in(tmp_path)


def test_a_disk_that_fails_while_it_is_written_costs_a_second_pass_not_the_run(
    counted: Counted, images: ImageSet, truth: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_later(*_: object) -> None:
        if counted.forwards == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (IMAGES * 16, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    counted.model.visual.register_forward_hook(fail_later)
    try:
        assert torch.equal(counted.embeddings(images, tmp_path), truth)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ["held in memory" in record.getMessage() for record in caplog.records] == [True]
    assert counted.forwards == 1 + 2 * 32
    assert not leftovers(tmp_path)


def test_training_with_and_without_the_cache_has_the_same_losses(weights: Path, tmp_path: Path) -> None:
    seen: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for cached, steps in seen.items():
        fields = TrainConfig(
            epochs=2, batch_size=64, optimizer=OptimizerConfig(lr=3e-3), threads=1, teacher_cache=cached
        )
        config = trial(
            weights,
            train=fields,
            data={"train": "small-large"},
            evaluate=pgd_suite("small-dev", eps=("2/255", "8/255"), steps=2),
        )
        train(
            config,
            report=lambda _: Decision.CONTINUE,
            workdir=tmp_path / str(cached),
            observe=lambda _, values, steps=steps: steps.append(dict(values)),  # type: ignore[misc]
        )
    assert len(seen[True]) == len(seen[False]) == 20
    for ours, theirs in zip(seen[True], seen[False], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
