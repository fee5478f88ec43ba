"""ImageNet-C from its own folders, and any set corrupted like it: formulas by hand, and accuracy by a plain loop."""

from __future__ import annotations

import colorsys
import dataclasses
import io
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tests.support.miniatures import folders
from trainers import data
from trainers.data.corrupted.entries import USUAL, CorruptedImages
from trainers.data.corrupted.functions import CORRUPTIONS, corrupt
from trainers.data.stored import read_raw
from trainers.errors import UnknownName
from trainers.evaluation.measure import evaluate_sets
from trainers.model.bundled import ARCH
from trainers.model.pretrained import load_clip
from trainers.schema.suite import SUITES, AttackAt, Suite, problems
from trainers.schema.training import ModelConfig

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
PICTURE[:2, :2] = [[[90, 90, 90], [0, 0, 0]], [[255, 255, 255], [255, 0, 0]]]


def by_pixel(change) -> np.ndarray:  # type: ignore[no-untyped-def]
    """What `change` makes of every pixel's hue, saturation and value."""
    found = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(p / 255)))) for p in PICTURE.reshape(-1, 3)]
    return np.array(found).reshape(PICTURE.shape) * 255


def test_light_and_colour_are_those_of_pythons_own_hue_saturation_and_value() -> None:
    lit = by_pixel(lambda h, s, v: (h, s, min(1, v + 0.3)))
    assert np.abs(corrupt(PICTURE, "brightness", 3, 0) - lit).max() < 1.001
    strong = by_pixel(lambda h, s, v: (h, min(1, 5 * s + 0.1), v))
    assert np.abs(corrupt(PICTURE, "saturate", 4, 0) - strong).max() < 1.001
    means = PICTURE.mean((0, 1))
    assert np.abs(corrupt(PICTURE, "contrast", 2, 0) - ((PICTURE - means) * 0.3 + means).clip(0, 255)).max() < 1.001


def test_a_point_of_light_is_smeared_over_a_disk_and_over_a_gaussian_and_no_light_is_lost() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    disk = corrupt(np.where(point > 0, 255, 0).astype(np.uint8), "defocus_blur", 1, 0)[..., 0]
    inside = np.hypot(*np.meshgrid(np.arange(-20, 21), np.arange(-20, 21))) <= 3
    assert set(np.unique(disk[inside])) == {int(255 / inside.sum())}  # sigma 0.1: no soft edge
    assert not disk[~inside].any()
    row = corrupt(point, "gaussian_blur", 2, 0)[20, :, 0] / 255
    expected = np.exp(-(np.arange(-8, 9) ** 2) / 8)
    assert np.abs(row[12:29] - (expected / expected.sum())[8] * expected / expected.sum()).max() < 1 / 255


def test_compression_and_coarse_pixels_are_pillows() -> None:
    content = io.BytesIO()
    Image.fromarray(PICTURE).save(content, "JPEG", quality=10)
    assert np.abs(corrupt(PICTURE, "jpeg_compression", 4, 0).astype(int) - np.asarray(Image.open(content))).max() <= 1
    coarse = corrupt(PICTURE, "pixelate", 5, 0)
    assert np.unique(coarse.reshape(6, 4, 6, 4, 3).std((1, 3))).max() == 0  # 24 pixels became 6, and 24 again
    uniform = np.full((32, 32, 3), 77, np.uint8)
    for name in ("zoom_blur", "defocus_blur", "gaussian_blur", "pixelate", "contrast"):
        assert np.abs(corrupt(uniform, name, 5, 0).astype(int) - 77).max() <= 1, name


def test_noise_has_its_strength_and_is_a_function_of_the_pictures_place() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for name, deviation in (("gaussian_noise", 0.18), ("speckle_noise", 0.35 * 128 / 255)):
        assert (corrupt(grey, name, 3, 0) / 255).std() == pytest.approx(deviation, rel=0.03), name
    shot = corrupt(grey, "shot_noise", 2, 0) / 255
    assert shot.mean() == pytest.approx(128 / 255, abs=0.01)
    assert shot.std() == pytest.approx((128 / 255 / 25) ** 0.5, rel=0.05)
    hit = corrupt(grey, "impulse_noise", 5, 0)
    assert (hit == 0).mean() == pytest.approx(0.135, abs=0.01)
    assert (hit == 255).mean() == pytest.approx(0.135, abs=0.01)
    for name in CORRUPTIONS:
        assert np.array_equal(corrupt(PICTURE, name, 3, 5), corrupt(PICTURE, name, 3, 5))
    assert not np.array_equal(corrupt(PICTURE, "gaussian_noise", 3, 5), corrupt(PICTURE, "gaussian_noise", 3, 6))


def test_accuracy_on_corrupted_shapes_is_that_of_a_plain_loop_with_open_clip() -> None:
    clip, name = load_clip(ModelConfig(arch=ARCH, pretrained="bundled")), "corrupted:gaussian_noise/4:tiny-shapes"
    clean = data.load_dataset("tiny-shapes")
    entry = AttackAt.model_validate({"attack": {"name": "fgsm"}, "eps": [0]})
    measured = evaluate_sets(clip, Suite(name="c", datasets=(name,), attacks=(entry,)))[name]
    shown = [corrupt(clean.images[row].permute(1, 2, 0).numpy(), "gaussian_noise", 4, row) for row in range(len(clean))]
    pixels = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(clip.visual.preprocess_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    tokens = open_clip.get_tokenizer(ARCH)([template.format(c) for c in clean.classes for template in clean.templates])
    with torch.no_grad():
        text = clip.encode_text(tokens, normalize=True).view(len(clean.classes), len(clean.templates), -1).mean(1)
        said = (clip.encode_image((pixels - mean) / std) @ torch.nn.functional.normalize(text, dim=1).T).argmax(1)
    right, before = int((said == clean.labels).sum()), evaluate_sets(
        clip, Suite(name="c", datasets=("tiny-shapes",), attacks=(entry,)))["tiny-shapes"].clean_correct  # fmt: skip
    assert abs(measured.clean_correct - right) <= 1
    assert measured.clean_correct < before


def test_rows_are_corrupted_alike_one_by_one_in_slices_and_in_any_order() -> None:
    images = data.load_dataset("corrupted:shot_noise/2:tiny-shapes").images
    assert isinstance(images, CorruptedImages)
    rows = torch.tensor([7, 3, 7])
    assert torch.equal(images[rows], torch.stack([images[7], images[3], images[7]]))
    assert torch.equal(images[3:5], torch.stack([images[3], images[4]]))
    assert images[torch.zeros(0, dtype=torch.int64)].shape == (0, *images.shape[1:])


def test_imagenet_c_is_read_from_its_own_folders(tmp_path: Path) -> None:
    folders(tmp_path, "imagenet-c/glass_blur/2", ("n01440764", "n02102040"), pattern="ILSVRC2012_val_{number:08d}.JPEG")
    entry = data.dataset_entry("imagenet-c:glass_blur/2", "data")
    assert (entry.num_images, entry.num_classes, entry.split) == (50_000, 1000, "val")
    raw = read_raw(dataclasses.replace(entry, num_images=4, num_classes=2), tmp_path)
    assert raw.classes == ("tench", "English springer")
    assert list(raw.labels) == [0, 0, 1, 1]
    assert "blur.tar" in " ".join(entry.files.by_hand if entry.files else ())


def test_wrong_names_are_answered_with_the_nearest_and_suites_of_them_are_legal(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no corruption 'gausian_noise'; nearest: gaussian_noise"):
        data.dataset_entry("imagenet-c:gausian_noise/1", "data.dev")
    with pytest.raises(UnknownName, match="a number from 1 to 5, as in contrast/3"):
        data.dataset_entry("corrupted:contrast/6:tiny-shapes", "data.dev")
    with pytest.raises(UnknownName, match="no corruption 'frost'"):  # it needs photographs of frost
        data.dataset_entry("corrupted:frost/3:tiny-shapes", "data.dev")
    assert len(USUAL) == 15
    assert [problems(SUITES[name][0]) for name in ("imagenet-c", "tiny-c")] == [[], []]
    assert data.not_ready({"data.dev": "corrupted:contrast/3:tiny-shapes"}) == []
    [missing] = data.not_ready({"data.dev": "corrupted:contrast/3:dtd"})
    assert "agft data prepare dtd" in missing
