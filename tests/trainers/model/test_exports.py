"""What other libraries load of an export says what open_clip says, and goes back with the same weights, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from tests.support.small import MODEL_CFG, small_resnet_clip
from trainers.arithmetic import exact_math
from trainers.errors import UserError
from trainers.model.build import Description, build_clip, create, describe, tokenizer_for
from trainers.model.bundled import ARCH
from trainers.model.exports.onnx_folder import CARD, IMAGE, OPSET, TEXT, export_onnx, run
from trainers.model.exports.timm_folder import export_timm
from trainers.model.exports.transformers_folder import export_transformers
from trainers.model.importing import import_checkpoint
from trainers.model.pretrained import load_clip
from trainers.model.weights import hash_weights, save_weights
from trainers.schema.training import ModelConfig

PROMPTS = ["a photo of a red square.", "A PHOTO of   a blue circle, isn't it? 42", "green"]
Saved = dict[str, tuple[Path, nn.Module]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The tiny CLIP, a random small ResNet, and a random ViT with QuickGELU, pixels normalised in another way and a
    scale of its own."""
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear", "resize_mode": "squash"}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        quick = build_clip(Description("small-quick", {**MODEL_CFG, "quick_gelu": True}, pixels))
        quick.logit_scale.data.fill_(3.0)
    models = {"tiny": load_clip(ModelConfig(arch=ARCH, pretrained="bundled")), "quick": quick}
    models["resnet"] = small_resnet_clip()
    folder = tmp_path_factory.mktemp("exports")
    return {name: (save_weights(folder / f"{name}.safetensors", clip), clip) for name, clip in models.items()}


def images_of(clip: nn.Module) -> Tensor:
    """In [0, 1], of the model's size."""
    side = clip.visual.preprocess_cfg["size"]
    side = side if isinstance(side, int) else side[0]
    return torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(0))


def normalised(clip: nn.Module) -> Tensor:
    mean, std = (torch.tensor(describe(clip).preprocess[each]).view(1, 3, 1, 1) for each in ("mean", "std"))
    return (images_of(clip) - mean) / std


def logits_of(clip: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad(), exact_math():
        image, text = clip.encode_image(normalised(clip), normalize=True), clip.encode_text(tokens, normalize=True)
        return clip.logit_scale.exp() * image @ text.T


@pytest.mark.parametrize("name", ["tiny", "quick"])
def test_transformers_computes_the_logits_of_open_clip_from_its_own_tokens_and_pixels(name, clips: Saved, tmp_path):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    path, clip = clips[name]
    out = export_transformers(path, tmp_path / "out")
    theirs, tokenizer = CLIPModel.from_pretrained(out).eval(), CLIPTokenizer.from_pretrained(out)
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad(), exact_math():
        found = theirs(input_ids=tokens, pixel_values=normalised(clip)).logits_per_image
    torch.testing.assert_close(found, logits_of(clip, tokenizer_for(clip)(PROMPTS)), atol=1e-5, rtol=1e-5)
    picture = Image.fromarray((images_of(clip)[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()).resize((48, 40))
    preprocess = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False)
    shown = CLIPImageProcessor.from_pretrained(out)(picture, return_tensors="pt").pixel_values[0]
    assert (
        shown - preprocess(picture)
    ).abs().max() < 0.05  # 2 of 255 shades: one library resizes tensors, the other pictures


@pytest.mark.parametrize("name", ["tiny", "quick"])
def test_the_way_to_transformers_and_back_changes_no_bit(name, clips: Saved, tmp_path, monkeypatch):
    path, clip = clips[name]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-quick", {**MODEL_CFG, "quick_gelu": True})
    out = export_transformers(path, tmp_path / "out")
    back = import_checkpoint(out / "model.safetensors", describe(clip).arch)
    assert (back.layout, back.base, back.note) == ("state-dict", None, "")
    assert hash_weights(back.clip) == hash_weights(clip)


def test_a_projector_of_llavas_kind_takes_the_exported_tower(clips: Saved, tmp_path):
    """Patch tokens of the last layer but one, through two linear layers to the width of a language model."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlavaConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    path, clip = clips["tiny"]
    folder = export_transformers(path, tmp_path / "out") / "vision"
    tower = CLIPVisionModel.from_pretrained(folder).eval()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig.from_pretrained(folder),
        text_config=LlamaConfig(hidden_size=24, num_attention_heads=2),
    )
    with torch.random.fork_rng(), torch.no_grad(), exact_math():
        torch.manual_seed(0)
        projector = LlavaMultiModalProjector(config)
        layers = tower(normalised(clip), output_hidden_states=True).hidden_states
        tokens = projector(layers[config.vision_feature_layer][:, 1:])
        visual = clip.visual
        inside = visual._embeds(normalised(clip))
        for block in visual.transformer.resblocks[:-1]:
            inside = block(inside)
        torch.testing.assert_close(tokens, projector(inside[:, 1:]), atol=1e-5, rtol=1e-5)
    assert tokens.shape == (5, 16, 24)


@pytest.mark.parametrize("name", ["tiny", "quick"])
def test_timm_computes_the_image_embeddings(name, clips: Saved, tmp_path):
    path, clip = clips[name]
    theirs = timm.create_model(f"local-dir:{export_timm(path, tmp_path / 'out')}", pretrained=True).eval()
    with torch.no_grad(), exact_math():
        torch.testing.assert_close(theirs(normalised(clip)), clip.encode_image(normalised(clip)), atol=1e-5, rtol=1e-5)
    assert list(theirs.pretrained_cfg["mean"]) == list(describe(clip).preprocess["mean"])


@pytest.mark.parametrize("name", ["tiny", "quick", "resnet"])
def test_onnxruntime_computes_the_logits_from_pixels_for_any_number_of_images(name, clips: Saved, tmp_path):
    import onnx

    path, clip = clips[name]
    out, worst = export_onnx(path, tmp_path / "out")
    assert worst is not None
    assert worst < 1e-4
    card, tokens = json.loads((out / CARD).read_text()), tokenizer_for(clip)(PROMPTS)
    image, text = run(out / IMAGE, "pixels", images_of(clip)), run(out / TEXT, "tokens", tokens)
    found = card["logit_scale"] * torch.from_numpy(image @ text.T)
    torch.testing.assert_close(found, logits_of(clip, tokens), atol=1e-4, rtol=1e-5)
    for file in (IMAGE, TEXT):
        graph = onnx.load(out / file)
        onnx.checker.check_model(graph, full_check=True)
        assert [each.version for each in graph.opset_import if not each.domain] == [OPSET] == [card["opset"]]


@pytest.mark.slow
def test_a_resnet_of_openais_size_goes_to_onnx(tmp_path):
    """RN50 with random weights: 16 blocks, 224 pixels, an attention pool of 32 heads."""
    clip = create("RN50-quickgelu", "RN50-quickgelu")
    path = save_weights(tmp_path / "rn50.safetensors", clip)
    out, worst = export_onnx(path, tmp_path / "out")
    assert worst is not None
    assert worst < 1e-4
    found = torch.from_numpy(run(out / IMAGE, "pixels", images_of(clip)))
    with torch.no_grad(), exact_math():
        torch.testing.assert_close(found, clip.encode_image(normalised(clip), normalize=True), atol=1e-5, rtol=1e-4)


def test_what_a_library_has_no_model_for_is_refused_with_what_is_odd_about_it(tmp_path):
    resnet = save_weights(tmp_path / "resnet.safetensors", small_resnet_clip())
    for export in (export_transformers, export_timm):
        with pytest.raises(UserError, match=r"small-resnet is none .*a ResNet.*--layout open-clip takes"):
            export(resnet, tmp_path / "out")
    average = {**MODEL_CFG, "vision_cfg": {**MODEL_CFG["vision_cfg"], "pool_type": "avg"}}
    path = save_weights(tmp_path / "average.safetensors", build_clip(Description("average", average, {})))
    with pytest.raises(UserError, match=r"vision_cfg\.pool_type 'avg'"):
        export_timm(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
