"""Picture files as people have them: what is read, what is refused, and what each is told."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image, PngImagePlugin
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from tests.support.damage import damaged_pictures
from tests.support.pictures import ALL, drawn, folder_of, picture
from trainers.data import load_dataset, not_ready
from trainers.data.folder import folder_entry
from trainers.data.pictures import FORMATS, SUFFIXES
from trainers.data.prepared.decode import decode, fault
from trainers.data.prepared.prepare import prepare
from trainers.errors import UserError

CROP = Compose([Resize(224, InterpolationMode.BILINEAR), CenterCrop(224), PILToTensor()])
PAGE = Path("docs/inputs.md")


@pytest.mark.parametrize("number", [75, pytest.param(2000, marks=pytest.mark.slow)])
def test_pictures_of_every_format_and_mode_are_what_torchvision_reads(number, tmp_path, monkeypatch):
    """But for grey of more than 8 bits, which torchvision cuts off at 255: here it is the picture that was drawn."""
    monkeypatch.setenv("AGFT_DATA", str(tmp_path / "none"))
    root = folder_of(tmp_path / "pictures", number)
    ours = load_dataset(f"folder:{root}")
    theirs = DatasetFolder(str(root), default_loader, extensions=tuple(SUFFIXES))
    assert len(ours) == number == len(theirs)
    assert ours.classes == ("Blue bird", "red fox", "x ray")
    assert ours.labels.tolist() == theirs.targets
    for row, (path, _) in enumerate(theirs.samples):
        with Image.open(path) as opened:
            if opened.mode[0] in "IF":
                grey = np.asarray(opened, np.float64) * (255 / (1 if opened.mode == "F" else 65535))
                image = Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
            else:
                image = default_loader(path)
        np.testing.assert_array_equal(ours.images[row].numpy(), CROP(image).numpy(), err_msg=path)


def test_every_suffix_of_torchvision_is_read_and_every_one_of_pillow_is_read_or_named_as_left_out():
    assert set(IMG_EXTENSIONS) <= SUFFIXES
    assert {suffix for suffix, _, _ in ALL} | {"." + each for each in ("jpeg", "jpe")} <= SUFFIXES
    known: dict[str, set[str]] = {}
    for suffix, name in Image.registered_extensions().items():
        known.setdefault({"MPO": "JPEG"}.get(name, name), set()).add(suffix)
    known["DIB"], known["BMP"] = {".dib"}, {".bmp"}
    assert {name: set(suffixes) for name, suffixes in FORMATS.items()} == {name: known[name] for name in FORMATS}
    page = PAGE.read_text()
    for suffix in SUFFIXES | {suffix for name in known.keys() - FORMATS.keys() for suffix in known[name]}:
        assert f"`{suffix}`" in page, suffix


GREYS: dict[str, tuple[np.ndarray, str, int]] = {
    "sixteen bits": (np.full((9, 9), 700, np.uint16), "png", 3),
    "sixteen bits, white": (np.full((9, 9), 65535, np.uint16), "tif", 255),
    "sixteen bits, low byte first": (np.full((9, 9), 32896, "<u2"), "tif", 128),
    "32 bits, small": (np.full((9, 9), 200, np.int32), "tif", 200),
    "32 bits, as 16": (np.full((9, 9), 257 * 90, np.int32), "tif", 90),
    "a portable grey map is of 16 bits": (np.full((9, 9), 200, np.uint16), "pgm", 1),
    "floats to 1": (np.full((9, 9), 0.5, np.float32), "tif", 128),
    "floats to 255": (np.full((9, 9), 99.6, np.float32), "tif", 100),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_of_more_than_8_bits_is_scaled(kind, tmp_path):
    values, suffix, expected = GREYS[kind]
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert np.unique(decode(tmp_path / f"x.{suffix}", "224", 224)).tolist() == [expected]


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif", "pgm", "jp2"])
def test_a_ramp_of_16_bits_is_the_same_ramp_of_8(kind, tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 224).astype(">u2" if "big" in kind else np.uint16), (224, 1))
    Image.fromarray(ramp).save(path := tmp_path / f"x.{kind.split()[-1]}")
    np.testing.assert_array_equal(decode(path, "224", 224)[1], np.rint(ramp / 257))


@pytest.mark.parametrize(("value", "options", "expected"), [
    (np.uint16(700), {}, 252), (np.uint16(65535), {"compression": "tiff_lzw"}, 0), (np.float32(0.25), {}, 191),
    (np.uint8(80), {}, 175),
])  # fmt: skip
def test_grey_whose_zero_is_white_is_turned_over(value, options, expected, tmp_path):
    """As X-rays are kept: Pillow does it up to 8 bits alone."""
    Image.fromarray(np.full((9, 9), value)).save(tmp_path / "x.tif", **options)
    says = [struct.pack("<HHIH", 262, 3, 1, white_is_largest) for white_is_largest in (1, 0)]
    (tmp_path / "y.tif").write_bytes((tmp_path / "x.tif").read_bytes().replace(*says))
    assert np.unique(decode(tmp_path / "y.tif", "224", 224)).tolist() == [expected]


@pytest.mark.parametrize(("values", "rule"), [
    (np.full((9, 9), 70000, np.int32), "grey of 32 bits, from 70000 to 70000; expected 0 to 65535"),
    (np.full((9, 9), -1, np.int32), "from -1 to -1; expected 0 to 65535"),
    (np.full((9, 9), 300, np.float32), "from 300 to 300; expected 0 to 1 or 0 to 255"),
    (np.full((9, 9), np.nan, np.float32), "from nan to nan; expected"),
])  # fmt: skip
def test_grey_without_a_range_is_refused(values, rule, tmp_path):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rule):
        decode(tmp_path / "x.tif", "224", 224)


def test_orientation_transparency_and_further_frames_are_left_out_of_account(tmp_path):
    """As by torchvision; a picture without them has the same pixels."""
    plain = picture(".jpg", "RGB", {}, size=(90, 60), seed=3)
    sideways = picture(".jpg", "RGB", {"exif": True}, size=(90, 60), seed=3)
    assert plain != sideways
    pixels = []
    for number, content in enumerate((plain, sideways)):
        (tmp_path / f"{number}.jpg").write_bytes(content)
        pixels.append(decode(tmp_path / f"{number}.jpg", "224", 224))
    np.testing.assert_array_equal(*pixels)
    clear = drawn("RGB", (90, 60), 4)
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png", save_all=True, append_images=[drawn("RGBA", (90, 60), 5)])
    clear.convert("RGB").save(tmp_path / "alone.png")
    np.testing.assert_array_equal(
        decode(tmp_path / "clear.png", "224", 224), decode(tmp_path / "alone.png", "224", 224)
    )


# Files that are no pictures, or would take a machine to read.


def png_of(width: int, height: int, depth: int = 8, colour: int = 2, *, rows: bytes = b"") -> bytes:
    """A PNG that says that it is so large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def progressive(width: int, height: int) -> bytes:
    """A small progressive JPEG whose header says that it is so large."""
    content = bytearray(picture(".jpg", "RGB", {"progressive": True}, size=(40, 30), seed=0))
    place = content.index(b"\xff\xc2") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.jpg", b"", "it is empty"),
    "a page": ("x.jpg", b"<html>404</html>", "a web page"),
    "a page with a head": ("x.png", b"\n<!DOCTYPE html><html>", "a web page"),
    "a pointer": ("x.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer; fetch"),
    "text": ("x.tif", b"hello", "no picture, or of no format that is read here"),
    "a program for another program": ("x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture, or"),
    "cut": ("x.jpg", picture(".jpg", "RGB", {}, size=(200, 200), seed=0)[:3000], "image file is truncated"),
    "cut PNG": ("x.png", picture(".png", "RGB", {}, size=(200, 200), seed=0)[:3000], "image file is truncated"),
    "a spacer": ("x.png", png_of(1, 60_000), "1 x 60,000 pixels: one side at most 100 times the other"),
    "a line": ("x.png", png_of(101_00, 100, rows=bytes(100 * 30301)), "10,100 x 100 pixels: one side at most 100"),
    "a bomb": ("x.png", png_of(30_000, 30_000), "pixels"),
    "a bomb of colours": ("x.png", png_of(10_000, 10_000), "10,000 x 10,000 pixels take 400 MB to decode; at most 360"),
    "a bomb with transparency": ("x.png", png_of(7_000, 7_000, colour=6), "take 392 MB to decode"),
    "a bomb of grey": ("x.png", png_of(9_000, 9_000, depth=16, colour=0), "take 648 MB to decode"),
    "a progressive bomb": ("x.jpg", progressive(7_000, 7_000), "7,000 x 7,000 pixels take 490 MB to decode"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_picture_is_named_for_what_it_is(kind, tmp_path):
    name, content, rule = BAD[kind]
    (tmp_path / name).write_bytes(content)
    message = fault(tmp_path / name, whole=True)
    assert message is not None
    assert message.startswith(f"{tmp_path / name}: not a readable image (")
    assert rule in message


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp", "jp2"])
def test_a_picture_is_at_most_100_times_as_long_as_it_is_wide_in_every_format(suffix, tmp_path):
    for size, read in {(8000, 1): False, (1, 8000): False, (301, 3): False, (300, 3): True, (1, 100): True}.items():
        Image.new("RGB", size).save(tmp_path / f"x.{suffix}")
        message = fault(tmp_path / f"x.{suffix}", whole=True)
        assert message is None if read else f"({size[0]:,} x {size[1]:,} pixels: one side at most" in str(message)


LONG_TEXTS: dict[str, dict[str, object]] = {
    "gif": {"comment": b"A" * 3_000_000}, "tif": {"description": "A" * 3_000_000}, "png": {"exif": bytes(3_000_000)},
    "jpg": {"icc_profile": bytes(3_000_000), "comment": b"A" * 65_000}, "webp": {"xmp": b"A" * 3_000_000},
}  # fmt: skip


@pytest.mark.parametrize("suffix", LONG_TEXTS)
def test_long_texts_of_every_format_are_passed_over(suffix, tmp_path):
    for number, options in enumerate(({}, LONG_TEXTS[suffix])):
        drawn("RGB", (30, 20), 1).save(tmp_path / f"{number}.{suffix}", **options)
    assert (tmp_path / f"1.{suffix}").stat().st_size > 3_000_000
    np.testing.assert_array_equal(*(decode(tmp_path / f"{number}.{suffix}", "224", 224) for number in range(2)))


def test_long_texts_in_a_picture_are_no_reason_to_refuse_it(tmp_path):
    for number, compressed in enumerate((True, False)):
        text = PngImagePlugin.PngInfo()
        text.add_text("comment", "A" * 3_000_000, zip=compressed)
        text.add_itxt("note", "ä" * 3_000_000, zip=compressed)
        drawn("RGB", (30, 20), 1).save(tmp_path / f"{number}.png", pnginfo=text)
    profile = io.BytesIO()
    drawn("RGB", (30, 20), 1).save(profile, "PNG", icc_profile=bytes(3_000_000))
    (tmp_path / "2.png").write_bytes(profile.getvalue())
    first, *others = [decode(tmp_path / f"{number}.png", "224", 224) for number in range(3)]
    for other in others:
        np.testing.assert_array_equal(first, other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged_pictures())
def test_a_damaged_picture_is_read_or_refused_in_one_line(tmp_path, drawn):
    """Thousands and their figures: `python tests/bench/fuzz.py`."""
    suffix, content = drawn
    (tmp_path / f"x{suffix}").write_bytes(content)
    message = ""
    try:
        assert decode(tmp_path / f"x{suffix}", "224", 224).shape == (3, 224, 224)
    except UserError as error:
        message = str(error)
    assert not message or message.startswith(f"{tmp_path}/x{suffix}: not a readable image (")
    assert "\n" not in message


def spoilt(root: Path, number: int, bad: int) -> list[Path]:
    """`number` pictures, `bad` of which are none in different ways."""
    for index in range(number):
        file = root / "ab"[index % 2] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn("L", (20, 20), index).save(file)
    files = sorted(root.rglob("*.png"))[:: number // bad][:bad]
    for file, content in zip(files, (b"", b"<html>", b"GIF89a", b"text", b"\x89PNG\r\n\x1a\n" * 9) * bad, strict=False):
        file.write_bytes(content)
    return files


@pytest.mark.parametrize("workers", [1, 2])
def test_every_bad_file_is_in_one_message_whoever_reads_them(workers, tmp_path):
    """A preparation by one process, one by several, the look before a study, and a set that is read into memory."""
    root, number = tmp_path / "pictures", 12 if workers == 1 else 300
    files = spoilt(root, number, 5)
    entry = folder_entry(f"folder:{root}", "data.train")
    with pytest.raises(UserError) as caught:
        prepare(entry, tmp_path, tmp_path / "out", workers=workers)
    messages = [str(caught.value)]
    if workers == 1:
        messages += not_ready({"data.train": entry.name})
        with pytest.raises(UserError) as caught:
            load_dataset(entry.name, "data.train")
        messages.append(str(caught.value))
    for message in messages:
        assert "5 images cannot be read:" in message
        assert [line.partition(": ")[0].strip() for line in message.splitlines()[1:]] == list(map(str, files))


def test_of_very_many_bad_files_the_first_are_named_and_all_are_counted(tmp_path):
    spoilt(tmp_path, 60, 60)
    (message,) = not_ready({"data.train": f"folder:{tmp_path}"})
    assert "60 images cannot be read:" in message
    assert message.endswith("\n  and 40 more")
    assert message.count("\n") == 21
