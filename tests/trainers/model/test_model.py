"""Loading a CLIP, and the model that training and evaluation see."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from tests.support.small import FlatCLIP, small_clip
from trainers.errors import MissingWeights, UnknownName, UserError
from trainers.model import bundled as tiny
from trainers.model.build import Description, build_clip, describe, tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings, fingerprint, resizing_matrix
from trainers.model.weights import save_weights
from trainers.schema.training import ModelConfig

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_pixels_are_normalised_inside_as_open_clip_does_outside() -> None:
    clip = small_clip()
    model = RobustCLIP(clip)
    normalised = tv.normalize(IMAGES, list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD))
    torch.testing.assert_close(model.embed(IMAGES), clip.encode_image(normalised))


def test_another_resolution_is_resized_inside_and_the_gradient_is_at_the_images_own() -> None:
    model = RobustCLIP(small_clip())
    large = torch.rand(2, 3, 24, 24, requires_grad=True)
    resized = tv.resize(large, [16, 16], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(model.embed(large), model.embed(resized), atol=1e-4, rtol=1e-3)  # another order
    (gradient,) = torch.autograd.grad(model.embed(large).sum(), large)
    assert gradient.shape == large.shape


@pytest.mark.parametrize(("size", "wanted"), [(32, 224), (512, 224), (300, 336), (250, 32)])
def test_resizing_is_bicubic_antialiased_interpolation_as_two_products(size: int, wanted: int) -> None:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1), requires_grad=True)
    usual = torch.nn.functional.interpolate(images, (wanted, wanted), mode="bicubic", antialias=True)
    matrix = resizing_matrix(size, wanted, images.device)
    ours = matrix @ (images @ matrix.T)
    assert (ours - usual).abs().max() < 1e-5  # of pixels in [0, 1]
    weights = torch.rand(ours.shape, generator=torch.Generator().manual_seed(2))
    slopes = [torch.autograd.grad((each * weights).sum(), images)[0] for each in (usual, ours)]
    assert (slopes[0] - slopes[1]).norm() < 1e-5 * slopes[0].norm()


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 16, 16), torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 8),
     torch.zeros(1, 3, 16, 16, dtype=torch.uint8)],
)  # fmt: skip
def test_what_is_no_batch_of_square_rgb_images_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images must be"):
        RobustCLIP(small_clip()).embed(images)


def test_logits_are_scaled_cosines() -> None:
    model = RobustCLIP(FlatCLIP(torch.eye(3)))
    logits = model.logits(torch.tensor([[3.0, 4.0, 0.0]]), torch.eye(3), 10.0)
    torch.testing.assert_close(logits, torch.tensor([[6.0, 8.0, 0.0]]))


def test_only_the_image_encoder_is_trainable_and_the_scale_is_the_models_own() -> None:
    clip = small_clip()
    model = RobustCLIP(clip)
    assert {name for name, p in clip.named_parameters() if p.requires_grad} == {
        f"visual.{name}" for name, _ in model.visual.named_parameters()
    }
    assert model.logit_scale == pytest.approx(100)
    assert not any(module.training for module in model.modules())


def test_a_frozen_copy_shares_nothing() -> None:
    model = RobustCLIP(small_clip())
    teacher = model.frozen_copy()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert teacher.embed(IMAGES).abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_class_embedding_is_the_normalised_mean_of_its_prompts_unit_embeddings() -> None:
    clip = small_clip()
    tokenizer = tokenizer_for(clip)
    classes = class_embeddings(clip, [["a cat", "the cat", "cat"], ["a dog"]], tokenizer)
    texts = torch.nn.functional.normalize(clip.encode_text(tokenizer(["a cat", "the cat", "cat", "a dog"])), dim=1)
    expected = torch.stack([texts[:3].mean(0), texts[3]])
    torch.testing.assert_close(classes, expected / expected.norm(dim=1, keepdim=True))
    assert not classes.requires_grad


def test_a_fingerprint_is_the_models_and_no_other() -> None:
    assert fingerprint(small_clip()) == fingerprint(small_clip())
    assert len(fingerprint(small_clip())) == 6
    changed = small_clip()
    with torch.no_grad():
        changed.text_projection.mul_(1.1)
        changed.visual.proj[0].mul_(1.1)
    assert fingerprint(changed) != fingerprint(small_clip())


def test_an_unknown_architecture_or_tag_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UnknownName, match=r"model\.arch.*ViT-B32.*ViT-B-32"):
        load_clip(ModelConfig(arch="ViT-B32"))
    with pytest.raises(UnknownName, match=r"model\.pretrained.*opena1.*openai"):
        load_clip(ModelConfig(pretrained="opena1"))


def test_weights_trained_with_quickgelu_are_refused_without_it() -> None:
    with pytest.raises(UserError, match="use arch: ViT-B-32-quickgelu"):
        load_clip(ModelConfig(arch="ViT-B-32", pretrained="openai"))


def test_a_hub_that_cannot_be_reached_is_reported_as_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to download weights for tag 'openai': Name or service not known")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(MissingWeights, match=r"'openai' of ViT-B-32-quickgelu.*give its path.*tiny-clip"):
        load_clip(ModelConfig())


def test_bundled_is_for_the_tiny_model_only() -> None:
    with pytest.raises(UserError, match="'bundled' exists for tiny-clip only"):
        load_clip(ModelConfig(arch="ViT-B-32-quickgelu", pretrained="bundled"))


def test_missing_files_and_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="no such checkpoint"):
        load_clip(ModelConfig(arch=tiny.ARCH, pretrained=str(tmp_path / "none.safetensors")))
    with pytest.raises(MissingWeights, match=r"open_clip_config\.json is missing"):
        load_clip(ModelConfig(arch=tiny.ARCH, pretrained=str(tmp_path)))


def test_a_plain_state_dict_is_loaded_and_a_pickle_with_code_in_it_is_not(tmp_path: Path) -> None:
    tiny.register()
    clip = build_clip(Description(tiny.ARCH, open_clip.get_model_config(tiny.ARCH), {}))
    torch.save(clip.state_dict(), tmp_path / "plain.pt")
    loaded = load_clip(ModelConfig(arch=tiny.ARCH, pretrained=str(tmp_path / "plain.pt")))
    assert fingerprint(loaded) == fingerprint(clip)
    assert describe(loaded).preprocess["size"] in (32, [32, 32])
    torch.save({"state_dict": clip.state_dict(), "hook": Malicious(tmp_path)}, tmp_path / "evil.pt")
    with pytest.raises(MissingWeights, match=r"evil\.pt"):
        load_clip(ModelConfig(arch=tiny.ARCH, pretrained=str(tmp_path / "evil.pt")))
    assert not (tmp_path / "executed").exists()


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, (str(self.folder / "executed"), "w")  # type: ignore[return-value]


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "small.safetensors", small_clip())
    with pytest.raises(UserError, match="holds a 'small-clip', not a 'tiny-clip'"):
        load_clip(ModelConfig(arch=tiny.ARCH, pretrained=str(path)))


def test_the_bundled_model_loads_and_knows_its_colours() -> None:
    clip = load_clip(ModelConfig(arch=tiny.ARCH, pretrained="bundled"))
    model = RobustCLIP(clip)
    classes = class_embeddings(clip, [["a red surface"], ["a blue surface"]], tokenizer_for(clip))
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.1, 0.9]]).view(2, 3, 1, 1).expand(2, 3, 32, 32).contiguous()
    assert model.logits(model.embed(colours), classes, 1.0).argmax(1).tolist() == [0, 1]
