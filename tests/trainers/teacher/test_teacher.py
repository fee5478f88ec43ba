"""The teacher's embeddings: what their key is made of, what their file proves, what their lock does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tests.support.small import MODEL_CFG, image_set, small_clip
from trainers.data import ImageSet
from trainers.files import FileLock, cache_folder
from trainers.model.build import Description, build_clip, describe
from trainers.model.robust import RobustCLIP
from trainers.teacher import teacher
from trainers.teacher.rows import Damaged, Writer, embedding_rows, largest_error, read_embeddings
from trainers.teacher.teacher import key_parts

CPU = torch.device("cpu")
PARTS = {"weights": "abc", "images": 5}


def model() -> RobustCLIP:
    return RobustCLIP(small_clip())


def heads(width: int) -> RobustCLIP:
    """The same weights, cut into heads of another width."""
    vision = {**MODEL_CFG["vision_cfg"], "head_width": width}
    clip = build_clip(Description("small-clip", {**MODEL_CFG, "vision_cfg": vision}, {}))
    clip.load_state_dict(small_clip().state_dict())
    return RobustCLIP(clip)


def changed(model: RobustCLIP, change: Callable[[RobustCLIP], Any]) -> RobustCLIP:
    with torch.no_grad():
        change(model)
    return model


def one_ulp(model: RobustCLIP) -> None:
    row = model.visual.conv1.weight[0, 0, 0]  # type: ignore[index, union-attr]
    row[0] = torch.nextafter(row[0], torch.tensor(9.0))


def other_mean(clip: nn.Module) -> nn.Module:
    description = describe(clip)
    preprocess = {**description.preprocess, "mean": [0.5, 0.5, 0.5]}
    clip.__dict__["description"] = replace(description, preprocess=preprocess)
    return clip


def test_the_same_model_and_images_have_the_same_key() -> None:
    here = key_parts(model(), image_set("a", 20))
    assert key_parts(model(), image_set("b", 20)) == here  # a name is no pixel
    assert json.loads(json.dumps(here)) == here  # as it is read back from a manifest


def relu(model: RobustCLIP) -> None:
    model.visual.transformer.resblocks[0].mlp.gelu = nn.ReLU()  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("weights", lambda: changed(model(), one_ulp)),
        ("structure", lambda: heads(8)),
        ("structure", lambda: changed(model(), relu)),
        ("transform", lambda: RobustCLIP(other_mean(small_clip()))),
        ("transform", lambda: changed(model(), lambda m: m.std.mul_(2))),
        ("transform", lambda: changed(model(), lambda m: setattr(m, "image_size", 24))),
    ],
    ids=["a weight by one rounding", "heads", "activation", "mean", "deviation", "size"],
)
def test_what_decides_the_embeddings_decides_the_key(part: str, other: Callable[[], RobustCLIP]) -> None:
    images = image_set("a", 20)
    ours, theirs = key_parts(model(), images), key_parts(other(), images)
    assert [name for name in ours if ours[name] != theirs[name]] == [part]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda s: image_set("a", 21), ["dataset", "images"]),
        (lambda s: image_set("a", 20, seed=1), ["dataset"]),
        (lambda s: replace(s, images=s.images.flip(0), labels=s.labels.flip(0)), ["dataset"]),
        (lambda s: image_set("a", 20, size=24), ["dataset"]),
    ],
    ids=["number", "pixels", "order", "size"],
)
def test_the_images_decide_the_key(change: Callable[[ImageSet], ImageSet], parts: list[str]) -> None:
    images = image_set("a", 20)
    ours, theirs = key_parts(model(), images), key_parts(model(), change(images))
    assert [name for name in ours if ours[name] != theirs[name]] == parts


def test_the_version_of_the_arithmetic_decides_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    images = image_set("a", 20)
    before = key_parts(model(), images)
    monkeypatch.setattr(teacher, "FORMAT", teacher.FORMAT + 1)
    assert key_parts(model(), images) != before


def test_how_the_student_trains_does_not_decide_the_key() -> None:
    images, student = image_set("a", 20), model()
    before = key_parts(student, images)
    student.precision = "bf16"
    student.requires_grad_(False).train()
    student.use_activation_checkpointing()
    assert key_parts(student, images) == before
    assert key_parts(model().frozen_copy(), images) == before


def test_the_folder_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv("AGFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "agft-study"


def test_rows_come_in_order_and_the_last_block_is_short() -> None:
    images, student = image_set("a", 600), model()
    blocks = list(embedding_rows(student, images, CPU))
    assert [len(block) for block in blocks] == [256, 256, 88]
    with torch.no_grad():
        live = student.embed(images.images.float() / 255)
    torch.testing.assert_close(torch.cat(blocks), live)


def test_the_spot_check_measures_the_largest_row_and_knows_other_kinds() -> None:
    images, student = image_set("a", 10), model()
    rows = torch.cat(list(embedding_rows(student, images, CPU)))
    assert largest_error(rows, student, images, CPU) == 0
    wrong = rows.clone()
    wrong[7] *= 1.25
    assert largest_error(wrong, student, images, CPU) == pytest.approx(0.25)
    assert largest_error(rows[:, :8], student, images, CPU) == float("inf")
    wrong[7, 3] = torch.nan
    assert largest_error(wrong, student, images, CPU) == float("inf")


def test_a_model_that_gives_no_numbers_agrees_with_itself() -> None:
    images, broken = image_set("a", 10), changed(model(), lambda m: m.visual.proj.fill_(torch.nan))  # type: ignore
    assert largest_error(torch.cat(list(embedding_rows(broken, images, CPU))), broken, images, CPU) == 0


def write(path: Path, rows: Tensor, parts: dict[str, Any] = PARTS) -> None:
    writer = Writer(path, (rows.shape[0], rows.shape[1]), parts, batch=2)
    for block in rows.split(2):
        writer.add(block)
    assert not path.exists()
    writer.finish()


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def file(tmp_path: Path, rows: Tensor) -> Path:
    write(tmp_path / "embeddings.safetensors", rows)
    return tmp_path / "embeddings.safetensors"


def test_a_file_is_read_back_by_us_and_by_safetensors(file: Path, rows: Tensor) -> None:
    found = read_embeddings(file, PARTS)
    assert found is not None
    assert torch.equal(found, rows)
    assert torch.equal(found[torch.tensor([4, 0])], rows[[4, 0]])
    with safe_open(file, framework="pt") as opened:
        assert torch.equal(opened.get_tensor("embeddings"), rows)
        assert json.loads(opened.metadata()["agft"])["weights"] == "abc"
    assert [item.name for item in file.parent.iterdir()] == [file.name]


def test_what_is_written_to_the_map_never_reaches_the_file(file: Path, rows: Tensor) -> None:
    found = read_embeddings(file, PARTS)
    assert found is not None
    found.zero_()
    again = read_embeddings(file, PARTS)
    assert again is not None
    assert torch.equal(again, rows)


def test_the_map_survives_the_files_removal(file: Path, rows: Tensor) -> None:
    found = read_embeddings(file, PARTS)
    file.unlink()
    assert found is not None
    assert torch.equal(found, rows)
    assert read_embeddings(file, PARTS) is None


def damage(content: bytes, name: str) -> bytes:
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 64 == 0
    return {
        "empty": b"",
        "cut in the header": content[:50],
        "cut in the data": content[:-4],
        "longer": content + b"\0",
        "not safetensors": b"x" * len(content),
        "no manifest": content.replace(b"agft", b"else"),
        "first byte": content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :],
        "last byte": content[:-1] + bytes([content[-1] ^ 128]),
        "zeros": content[:start] + bytes(len(content) - start),
        "negative shape": content.replace(b"[5,3]", b"[-5,-3]"),
    }[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "cannot be read"),
        ("cut in the header", "cannot be read"),
        ("cut in the data", "bytes are not those of"),
        ("longer", "bytes are not those of"),
        ("not safetensors", "does not start as"),
        ("no manifest", "cannot be read"),
        ("first byte", "SHA-256"),
        ("last byte", "SHA-256"),
        ("zeros", "SHA-256"),
        ("negative shape", "bytes are not those of|cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(file: Path, name: str, reason: str) -> None:
    file.write_bytes(damage(file.read_bytes(), name))
    with pytest.raises(Damaged, match=reason):
        read_embeddings(file, PARTS)


def test_a_file_made_from_something_else_is_refused_by_what_differs(file: Path) -> None:
    with pytest.raises(Damaged, match=r"something else: weights$"):
        read_embeddings(file, {**PARTS, "weights": "abd"})
    with pytest.raises(Damaged, match=r"something else: dtype$"):
        read_embeddings(file, {**PARTS, "dtype": "float32"})


def test_a_writer_that_is_discarded_leaves_nothing_and_one_that_was_killed_shows_no_file(
    tmp_path: Path, rows: Tensor
) -> None:
    path = tmp_path / "embeddings.safetensors"
    writer = Writer(path, (5, 3), PARTS, batch=2)
    writer.add(rows[:2])
    assert [item.suffix for item in tmp_path.iterdir()] == [".part"]
    assert read_embeddings(path, PARTS) is None
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_goes_on_behind_the_rows_that_one_before_has_noted(
    file: Path, tmp_path: Path, rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.teacher.rows.NOTE_SECONDS", -1.0)
    path = tmp_path / "again.safetensors"

    def noted(*, batch: int = 2, parts: dict[str, Any] = PARTS) -> int:
        """Rows that a writer finds, after another left behind four."""
        first = Writer(path, (5, 3), PARTS, batch=2)
        first.start(0)
        first.add(rows[:2])
        first.add(rows[2:4])
        first.leave()
        return Writer(path, (5, 3), parts, batch=batch).done

    assert noted() == 4
    assert noted(batch=4) == 0
    assert noted(parts={**PARTS, "weights": "abd"}) == 0
    assert noted() == 4
    part = tmp_path / "again.safetensors.part"
    content = bytearray(part.read_bytes())
    content[-20] ^= 1  # in the fourth row
    part.write_bytes(content)
    assert Writer(path, (5, 3), PARTS, batch=2).done == 0
    assert noted() == 4
    last = Writer(path, (5, 3), PARTS, batch=2)
    last.start(2)  # another disk had fewer
    last.add(rows[2:])
    last.finish()
    assert path.read_bytes() == file.read_bytes()
    assert {item.name for item in tmp_path.iterdir()} == {"embeddings.safetensors", "again.safetensors"}


def test_room_that_is_not_there_is_known_before_the_first_row(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    rows = 2 * free.f_blocks * free.f_frsize // 4096
    with pytest.raises(OSError, match=r"No space|too large"):
        Writer(tmp_path / "embeddings.safetensors", (rows, 1024), PARTS, batch=2)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_has_one_owner_whose_number_the_others_read(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert second.owner() == -1
    assert first.acquire()
    assert not second.acquire()
    assert second.owner() == first.token
    number = first.token
    first.release()
    first.release()
    assert second.acquire()
    assert first.owner() == second.token != number
