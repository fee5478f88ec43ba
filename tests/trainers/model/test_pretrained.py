"""Places that a model is loaded from, and what is said when it cannot be had there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch

from tests.support.official import agft_file, openai_vit, tecoa_file, toy_architectures, toy_clip
from tests.support.small import small_clip
from tests.trainers.model.test_official import Malicious
from trainers.errors import MissingWeights, UserError
from trainers.model import bundled as tiny
from trainers.model import pretrained
from trainers.model.build import describe
from trainers.model.pretrained import load_clip
from trainers.model.robust import fingerprint
from trainers.model.weights import export_open_clip, save_weights
from trainers.schema.training import ModelConfig

VIT = "toy-vit-quickgelu"


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_architectures(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export folder of a toy ViT."""
    return export_open_clip(save_weights(tmp_path / "w.safetensors", toy_clip(VIT)), tmp_path / "export")


@pytest.mark.parametrize("text", ["a/b", "w.safetensors", "./w", "s3://b/k", "hf-hub:a/b", "local-dir:x", "~/w.pt"])
def test_a_place_is_told_from_a_tag(text: str) -> None:
    assert ModelConfig(pretrained=text).names_a_place()


@pytest.mark.parametrize("text", ["openai", "laion2b_s34b_b79k", "bundled", "datacomp_xl_s13b_b90k"])
def test_a_tag_is_no_place(text: str) -> None:
    assert not ModelConfig(pretrained=text).names_a_place()


def test_an_export_folder_loads_by_its_path_and_as_a_local_dir(export: Path) -> None:
    for place in (str(export), f"local-dir:{export}"):
        clip = load_clip(ModelConfig(arch=VIT, pretrained=place))
        assert fingerprint(clip) == pytest.approx(fingerprint(toy_clip(VIT)), abs=1e-4)
        assert describe(clip).arch == VIT


def test_a_folder_of_another_model_than_its_name_says_is_refused_with_the_right_one(export: Path) -> None:
    with pytest.raises(UserError, match=r"is no toy-vit \(quick_gelu True, not False\); use arch: toy-vit-quickgelu"):
        load_clip(ModelConfig(arch="toy-vit", pretrained=str(export)))
    with pytest.raises(UserError, match=r"vision_cfg\.layers 2, not 3\); use arch: toy-vit-quickgelu"):
        load_clip(ModelConfig(arch="toy-vit-deep-quickgelu", pretrained=str(export)))
    assert describe(load_clip(ModelConfig(arch="my-own-name", pretrained=str(export)))).arch == "my-own-name"


def test_a_missing_local_dir_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="no such folder"):
        load_clip(ModelConfig(arch=VIT, pretrained=f"local-dir:{tmp_path / 'none'}"))


def test_a_hub_repository_that_cannot_be_reached_is_reported_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as on a machine without a network
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    with pytest.raises(MissingWeights, match=r"could not load hf-hub:some-org/some-clip .*local-dir:FOLDER") as caught:
        load_clip(ModelConfig(arch=VIT, pretrained="hf-hub:some-org/some-clip"))
    assert "hf_secret" not in str(caught.value)


def test_a_hub_repository_is_checked_against_its_name(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, config = open_clip.create_model, open_clip.get_model_config

    def from_folder(name: str, **options: object) -> torch.nn.Module:
        return create(name.replace("hf-hub:some-org/toy", f"local-dir:{export}"), **options)

    monkeypatch.setattr(open_clip, "create_model", from_folder)
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: config(name.replace("hf-hub:some-org/toy", f"local-dir:{export}"))
    )
    clip = load_clip(ModelConfig(arch=VIT, pretrained="hf-hub:some-org/toy"))
    assert fingerprint(clip) == pytest.approx(fingerprint(toy_clip(VIT)), abs=1e-4)
    with pytest.raises(UserError, match=r"hf-hub:some-org/toy is no toy-vit .*use arch: toy-vit-quickgelu"):
        load_clip(ModelConfig(arch="toy-vit", pretrained="hf-hub:some-org/toy"))


def test_an_address_goes_through_the_function_for_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = save_weights(tmp_path / "w.safetensors", small_clip()), []

    def fetch(address: str) -> Path:
        asked.append(address)
        return path

    monkeypatch.setattr(pretrained, "FETCHERS", {"s3": fetch})
    address = "s3://bucket/some/weights.safetensors"
    assert fingerprint(load_clip(ModelConfig(arch="small-clip", pretrained=address))) == fingerprint(small_clip())
    assert asked == [address]
    with pytest.raises(UserError, match=r"s3://bucket/.*safetensors holds a 'small-clip', not a 'tiny-clip'"):
        load_clip(ModelConfig(arch=tiny.ARCH, pretrained=address))
    with pytest.raises(UserError, match="nothing here fetches https:// addresses"):
        load_clip(ModelConfig(arch="small-clip", pretrained="https://example.org/w.safetensors"))


@pytest.mark.parametrize("make", [agft_file, tecoa_file], ids=["agft", "tecoa"])
def test_an_official_checkpoint_is_not_half_loaded_but_sent_to_the_import(make: object, tmp_path: Path) -> None:
    path = make(tmp_path / "c.pth", openai_vit())  # type: ignore[operator]
    layout = "agft" if make is agft_file else "tecoa"
    with pytest.raises(UserError, match=rf"layout '{layout}' of another code.*agft import .*c\.pth --arch {VIT} --out"):
        load_clip(ModelConfig(arch=VIT, pretrained=str(path)))


def test_a_damaged_file_or_one_with_code_is_called_so_without_advice_to_load_it_anyway(tmp_path: Path) -> None:
    torch.save({"a": Malicious(tmp_path)}, tmp_path / "evil.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "evil.pt").read_bytes()[:300])
    for name, text in (("evil.pt", "reading it would run code"), ("cut.pt", "perhaps truncated")):
        with pytest.raises(MissingWeights, match=text) as caught:
            load_clip(ModelConfig(arch=VIT, pretrained=str(tmp_path / name)))
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_plain_state_dict_of_another_size_says_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(toy_clip("toy-vit-deep-quickgelu").state_dict(), tmp_path / "deep.pt")
    with pytest.raises(MissingWeights, match=r"12 unexpected .*has the sizes of arch: toy-vit-deep-quickgelu"):
        load_clip(ModelConfig(arch=VIT, pretrained=str(tmp_path / "deep.pt")))


def test_an_export_without_its_weights_is_refused(export: Path, tmp_path: Path) -> None:
    shutil.copytree(export, tmp_path / "copy")
    (tmp_path / "copy" / "open_clip_model.safetensors").unlink()
    with pytest.raises(MissingWeights, match="could not load"):
        load_clip(ModelConfig(arch=VIT, pretrained=str(tmp_path / "copy")))
    config = json.loads((export / "open_clip_config.json").read_text())
    del config["model_cfg"]
    (export / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(MissingWeights, match="no readable model_cfg"):
        load_clip(ModelConfig(arch=VIT, pretrained=str(export)))
