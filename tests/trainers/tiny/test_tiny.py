"""The bundled tiny CLIP: its drawings, its sets and the shipped weights."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from trainers.data.base import ImageSet
from trainers.data.drawn import corpus
from trainers.data.drawn.datasets import STATED_EPS, TINY_DATASETS, TINY_ROLES
from trainers.model import bundled as tiny
from trainers.model.pretrained import load_clip
from trainers.schema.training import ModelConfig
from trainers.tiny.report import BEDS, EVERY, ROLES, ZERO_SHOT, measure
from trainers.tiny.train import contrastive_loss, shifted

LOADED = {}


def dataset(name):
    if name not in LOADED:
        LOADED[name] = TINY_DATASETS[name].load()
    return LOADED[name]


def test_the_table_of_sets_needs_no_torch():
    code = "import sys, trainers.data.drawn.datasets; assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", TINY_DATASETS)
def test_a_set_is_what_its_row_of_the_table_says(name):
    entry, data = TINY_DATASETS[name], dataset(name)
    assert (len(data), len(data.classes)) == (entry.num_images, entry.num_classes)
    assert data.images.dtype == torch.uint8
    assert data.images.shape[1:] == (3, 32, 32)
    assert len(set(data.classes)) == len(data.classes)
    there = data.labels.unique()  # all classes, or those held out
    assert len(there) == len(entry.held_out or data.classes)
    counts = data.labels.bincount()[there]
    assert counts.min() == counts.max(), "classes are balanced"
    prefix = data.labels[: 2 * len(there)].bincount()[there]
    assert prefix.min() == prefix.max() == 2, "so is every prefix of whole rounds"


def test_in_a_bed_every_set_has_exactly_one_role_and_there_are_enough_of_them():
    for bed in BEDS.values():
        names = [name for role in bed.values() for name in role]
        assert len(set(names)) == len(names)
        assert tuple(bed) == ROLES
        assert len(names) >= 7
    assert sorted(EVERY) == sorted(TINY_DATASETS)
    assert all(TINY_DATASETS[name].num_classes >= 100 for name in TINY_ROLES["train"])


def test_no_image_is_shared_within_or_between_sets_or_with_the_corpus():
    rng = np.random.default_rng([0, 0, 0])  # the first images of the shipped model's corpus
    drawn = torch.from_numpy(np.stack([corpus.scene(rng)[0] for _ in range(1000)]))
    hashes = ImageSet("corpus", drawn, torch.zeros(1000), (), ()).image_hashes()
    hashes += [digest for name in TINY_DATASETS for digest in dataset(name).image_hashes()]
    assert len(set(hashes)) == len(hashes)


def test_a_set_is_drawn_again_to_the_same_bytes(tmp_path, monkeypatch):
    before = dataset("tiny-counts").content_hash
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert TINY_DATASETS["tiny-counts"].load().content_hash == before
    assert list(tmp_path.rglob("tiny-counts-*.pt")), "it was drawn, not read"
    assert TINY_DATASETS["tiny-counts"].load().content_hash == before


def test_a_scene_depends_on_its_generator_only():
    for seed in range(20):
        first, again = (corpus.scene(np.random.default_rng(seed)) for _ in range(2))
        assert (first[0] == again[0]).all()
        assert first[1:] == again[1:]


def test_shifting_by_nothing_is_the_identity_and_never_makes_new_pixels():
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, 3, 8, 8)
    assert torch.equal(shifted(images, torch.Generator(), reach=0), images)
    moved = shifted(images, torch.Generator().manual_seed(0))
    assert set(moved[1].flatten().tolist()) <= set(images[1].flatten().tolist())


def test_the_loss_is_ordinary_cross_entropy_when_all_captions_differ():
    images, texts = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    shown = torch.stack([torch.zeros(5), torch.arange(5), torch.full((5,), -1)], 1).long()
    loss = contrastive_loss(images, texts, torch.tensor(3.0), shown=shown, said=shown, which=torch.arange(5))
    logits, target = 3.0 * images @ texts.T, torch.arange(5)
    expected = torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    torch.testing.assert_close(loss, expected / 2)


def test_a_true_caption_that_is_not_the_image_s_own_is_no_negative():
    images, texts = torch.eye(4)[:2], torch.eye(4)[:2]
    shown = torch.tensor([[1, 0, 3], [1, 0, 5]])  # two red and blue circles
    said = torch.tensor([[1, 0, 3], [1, 0, -1]])  # "a red circle", "a circle": the second is true of both
    losses = []
    for score in (-9.0, 9.0):  # how much the red circle looks like "a circle" must not matter
        texts[1, 0] = score
        loss = contrastive_loss(images, texts, torch.tensor(1.0), shown=shown, said=said, which=torch.tensor([0, 1]))
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_registering_twice_changes_nothing():
    tiny.register()
    before = open_clip.get_model_config(tiny.ARCH)
    tiny.register()
    assert open_clip.get_model_config(tiny.ARCH) == before


def test_the_shipped_file_is_small_and_a_complete_state_dict():
    assert tiny.weights_path().stat().st_size < 8e6
    tiny.register()
    model = open_clip.create_model(tiny.ARCH, pretrained=str(tiny.weights_path()))
    state = load_file(tiny.weights_path())
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    assert all(torch.equal(value, state[name].float()) for name, value in model.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.logit_scale.exp() <= 100.01


def test_the_shipped_weights_reach_the_accuracies_that_are_claimed():
    clip = load_clip(ModelConfig(arch=tiny.ARCH, pretrained="bundled"))
    rows = [measure(clip, name, radii=(STATED_EPS,), samples=120) for name in ZERO_SHOT]
    share = {row.name: (row.clean / row.total, row.noisy / row.total) for row in rows}
    drawn = [name for name in ZERO_SHOT if name != "real-digits"]
    assert np.mean([share[name][0] for name in drawn]) >= 0.75
    assert share["real-digits"][0] >= 0.50
    assert np.mean([clean - noisy for clean, noisy in share.values()]) <= 0.03
    assert np.mean([row.robust[STATED_EPS] / row.total for row in rows]) <= 0.13
