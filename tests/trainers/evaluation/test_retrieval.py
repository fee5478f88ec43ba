"""Retrieval on miniatures of Flickr30k's and COCO's files, its numbers against plain counting, and under attack."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from study.cli.main import main
from trainers.data import load_dataset
from trainers.data.pairs import CAPTIONS, PAIRS, Pairs
from trainers.data.prepared.decode import decode
from trainers.errors import UserError
from trainers.evaluation.retrieval import recalls, retrieve
from trainers.model.bundled import ARCH
from trainers.model.pretrained import load_clip
from trainers.schema.suite import AttackAt
from trainers.schema.training import ModelConfig

NUMBER = 24


def draw(folder: Path, names: list[str]) -> list[str]:
    """The tiny corpus' shapes as files; the class of each."""
    shapes = load_dataset("tiny-color-shapes")
    folder.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(names):
        Image.fromarray(shapes.images[row].permute(1, 2, 0).numpy()).resize((64, 64)).save(folder / name, quality=95)
    return [shapes.classes[int(label)] for label in shapes.labels[: len(names)]]


def flickr30k(root: Path) -> None:
    names = [f"{1000 + row}.jpg" for row in range(NUMBER)]
    said = draw(root / "flickr30k/images", names)
    words = ("photo of a", "drawing of a", "small", "large", "nice", "sixth")
    rows = [
        {"filename": name, "split": "test" if row % 3 else "train",
         "sentences": [{"raw": f"a {word} {text}  number {row}."} for word in words]}
        for row, (name, text) in enumerate(zip(names, said, strict=True))
    ]  # fmt: skip
    (root / "flickr30k/dataset_flickr30k.json").write_text(json.dumps({"images": rows, "dataset": "flickr30k"}))


def coco(root: Path) -> None:
    names = [f"{row:012d}.jpg" for row in range(NUMBER)]
    said = draw(root / "coco/val2017", names)
    images = [{"id": 500 - row, "file_name": name} for row, name in enumerate(names)]
    texts = [
        {"id": 9000 - row * 10 - k, "image_id": 500 - row, "caption": f"{k} a {text} in a picture\n"}
        for row, text in enumerate(said) for k in range(6)
    ]  # fmt: skip
    path = root / "coco/annotations/captions_val2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": images, "annotations": texts, "info": {}}))


def test_ranks_are_counted_as_a_person_would_count_them() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (30, 80))
    owner = torch.cat([torch.arange(30), torch.randint(0, 30, (50,), generator=generator)])
    found = recalls(image, text, owner)
    for k in (1, 5, 10):
        hits = sum(bool((owner[(image[i] @ text.T).argsort(descending=True)[:k]] == i).any()) for i in range(30))
        back = sum(int(owner[j] in (image @ text[j]).argsort(descending=True)[:k]) for j in range(80))
        assert (found.image_to_text[k], found.text_to_image[k]) == (hits / 30, back / 80)


def test_the_files_of_flickr30k_and_coco_are_read_with_five_captions_each_in_their_own_order(tmp_path: Path) -> None:
    flickr30k(tmp_path)
    coco(tmp_path)
    pairs = PAIRS["flickr30k"].read(tmp_path)
    assert [path.name for path in pairs.images[:3]] == ["1001.jpg", "1002.jpg", "1004.jpg"]
    assert {len(texts) for texts in pairs.captions} == {CAPTIONS}
    assert pairs.captions[0][0].endswith("number 1.")
    assert "  " not in pairs.captions[0][0]
    other = PAIRS["coco-val2017"].read(tmp_path)
    assert len(other.images) == NUMBER
    assert other.captions[3][0].startswith("5 a ")  # the smallest id first
    (tmp_path / "coco/val2017/000000000003.jpg").unlink()
    with pytest.raises(UserError, match=r"000000000003.jpg: no such file.*1 of 24 pictures"):
        PAIRS["coco-val2017"].read(tmp_path)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pairs]:
    root = tmp_path_factory.mktemp("pairs")
    flickr30k(root)
    return root, PAIRS["flickr30k"].read(root)


def test_recall_of_the_tiny_clip_is_that_of_a_plain_loop_and_an_attack_lowers_it(shown: tuple[Path, Pairs]) -> None:
    _, pairs = shown
    clip = load_clip(ModelConfig(arch=ARCH, pretrained="bundled"))
    entry = AttackAt.model_validate({"attack": {"name": "pgd", "steps": 5}, "eps": ["16/255"]})
    found = retrieve(clip, pairs, entry)
    pixels = torch.stack([torch.from_numpy(decode(path, "224", 224)) for path in pairs.images]) / 255
    small = torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(clip.visual.preprocess_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        image = clip.encode_image((small - mean) / std, normalize=True)
        text = clip.encode_text(
            open_clip.get_tokenizer(ARCH)([t for own in pairs.captions for t in own]), normalize=True
        )
    owner = torch.arange(len(pairs.images)).repeat_interleave(CAPTIONS)
    plain = recalls(image, text, owner)
    assert found["clean"] == plain
    assert found["16/255"].image_to_text[1] < plain.image_to_text[1]
    assert found["16/255"].image_to_text[5] <= plain.image_to_text[5]
    assert (plain.images, plain.texts) == (16, 80)


def test_the_command_prints_a_table_and_says_which_files_are_missing(shown: tuple[Path, Pairs], monkeypatch) -> None:
    monkeypatch.setenv("AGFT_DATA", str(shown[0]))
    done = CliRunner().invoke(main, ["retrieve", "tiny-clip", "--on", "flickr30k", "--samples", "6", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["recall"]["clean"]["images"] == 6
    shown_ = CliRunner().invoke(main, ["retrieve", "tiny-clip", "--on", "flickr30k", "--samples", "6"])
    assert "R@10" in shown_.stdout
    lost = CliRunner().invoke(main, ["retrieve", "tiny-clip", "--on", "coco-val2017"])
    assert lost.exit_code == 2
    assert "coco/annotations/captions_val2017.json" in lost.stderr
    wrong = CliRunner().invoke(main, ["retrieve", "tiny-clip", "--on", "flickr"])
    assert wrong.exit_code == 2
    assert "flickr30k" in wrong.stderr
