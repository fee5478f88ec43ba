"""Official checkpoints become weights of ours with every tensor exact, or are refused with what is wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.official import (
    agft_file,
    base_weights,
    openai_resnet,
    openai_vit,
    tecoa_file,
    toy_architectures,
    toy_clip,
)
from trainers.errors import MissingWeights, UnknownName, UserError
from trainers.model.build import describe
from trainers.model.importing import Imported, export_agft, import_checkpoint
from trainers.model.weights import load_weights, read_metadata, save_weights

ENCODERS = {"toy-vit-quickgelu": openai_vit, "toy-resnet-quickgelu": openai_resnet}
VIT = "toy-vit-quickgelu"


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_architectures(tmp_path_factory.mktemp("configs")):
        yield


def bring(path: Path, arch: str = VIT, **options: Any) -> Imported:
    return import_checkpoint(path, arch, **{"base": str(base_weights(path.parent, arch)), **options})


def plain_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, path)
    return path


def encoder_of(clip: nn.Module) -> dict[str, Tensor]:
    return dict(clip.visual.state_dict())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("arch", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_agfts_own_file_makes_the_round_trip_bit_for_bit(arch: str, dtype: torch.dtype, tmp_path: Path) -> None:
    encoder = ENCODERS[arch]()
    for name, value in encoder.items():  # as CLIP on a GPU: matrices in half precision, norms in single
        encoder[name] = value.to(dtype) if value.ndim > 1 else value
    imported = bring(agft_file(tmp_path / "official.pth", encoder), arch)
    assert imported.layout == "agft"
    ours = save_weights(tmp_path / "ours.safetensors", imported.clip, extra={"import": imported.provenance})
    assert all(value.dtype in (torch.float32, torch.int64) for value in load_weights(ours).state_dict().values())
    back = torch.load(export_agft(ours, tmp_path / "back.pth"), weights_only=True)
    assert back["params"] == {}
    assert list(back["modules"]) == ["clip.visual"]
    assert_same(back["modules"]["clip.visual"], encoder)


@pytest.mark.parametrize("arch", ENCODERS)
def test_every_layout_brings_the_same_encoder_and_the_bases_text_side(arch: str, tmp_path: Path) -> None:
    encoder, base = ENCODERS[arch](), toy_clip(arch)
    wrapped = OrderedDict((f"module.model.{name}", value) for name, value in encoder.items())
    files = {
        "agft": agft_file(tmp_path / "a.pth", encoder),
        "tecoa": tecoa_file(tmp_path / "t.pth.tar", encoder),
        "fare": plain_file(tmp_path / "f.pt", encoder),
        "fare, wrapped": plain_file(tmp_path / "w.pt", wrapped),
        "fare, of a whole model": plain_file(tmp_path / "v.pt", {f"visual.{n}": v for n, v in encoder.items()}),
    }
    for layout, path in files.items():
        found = bring(path, arch)
        assert found.layout == layout.split(",")[0]
        assert_same(encoder_of(found.clip), encoder)
        for name, value in found.clip.state_dict().items():
            assert name.startswith("visual.") or torch.equal(value, base.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_whole_state_dict_needs_no_base(prefix: str, tmp_path: Path) -> None:
    wanted = toy_clip(VIT, seed=5).state_dict()
    torch.save({"epoch": 3, "state_dict": {prefix + n: v for n, v in wanted.items()}}, tmp_path / "w.pt")
    found = import_checkpoint(tmp_path / "w.pt", VIT)
    assert (found.layout, found.base, found.distance) == ("state-dict", None, None)
    assert_same(dict(found.clip.state_dict()), wanted)


def test_the_weights_remember_where_they_came_from(tmp_path: Path) -> None:
    found = bring(agft_file(tmp_path / "official.pth", openai_vit()))
    path = save_weights(tmp_path / "ours.safetensors", found.clip, extra={"import": found.provenance})
    kept = read_metadata(path)["extra"]["import"]
    assert (kept["layout"], kept["file"]) == ("agft", "official.pth")
    assert len(kept["sha256"]) == 64


def test_the_tecoa_family_is_told_apart_by_the_user_and_pmg_afts_pixels_are_its_own(tmp_path: Path) -> None:
    path = tecoa_file(tmp_path / "t.pth.tar", openai_vit())
    assert "--layout pmg-aft" in bring(path).note
    assert describe(bring(path, layout="tga-zsr").clip).preprocess["mean"][0] == pytest.approx(0.48145466)
    pmg = bring(path, layout="pmg-aft")
    assert pmg.note == ""
    assert describe(pmg.clip).preprocess["mean"] == [0.485, 0.456, 0.406]
    ours = save_weights(tmp_path / "pmg.safetensors", pmg.clip)
    assert describe(load_weights(ours)).preprocess["std"] == [0.229, 0.224, 0.225]
    with pytest.raises(UserError, match="AGFT's code always with CLIP's"):
        export_agft(ours, tmp_path / "back.pth")


@pytest.mark.parametrize("layout", ["agft", "tecoa", "fare"])
def test_openais_weights_in_a_model_without_quickgelu_are_refused_with_the_right_name(
    layout: str, tmp_path: Path
) -> None:
    make = {"agft": agft_file, "tecoa": tecoa_file, "fare": plain_file}[layout]
    path = make(tmp_path / "c.pth", openai_vit())
    with pytest.raises(UserError, match=r"need QuickGELU.*use --arch toy-vit-quickgelu$"):
        import_checkpoint(path, "toy-vit")


def test_openais_own_state_dict_is_known_by_its_three_numbers(tmp_path: Path) -> None:
    numbers = {name: torch.tensor(8) for name in ("input_resolution", "context_length", "vocab_size")}
    path = plain_file(tmp_path / "openai.pt", {**toy_clip(VIT).state_dict(), **numbers})
    with pytest.raises(UserError, match="use --arch toy-vit-quickgelu"):
        import_checkpoint(path, "toy-vit")
    assert import_checkpoint(path, VIT).layout == "state-dict"


def test_everything_that_does_not_fit_is_in_one_message_with_the_architecture_that_would(tmp_path: Path) -> None:
    encoder = openai_vit(layers=3)
    encoder["extra.weight"] = torch.ones(2)
    del encoder["ln_post.bias"]
    encoder["proj"] = torch.ones(64, 32)
    encoder["ln_pre.bias"] = torch.ones(3)
    with pytest.raises(UserError) as caught:
        bring(agft_file(tmp_path / "c.pth", encoder))
    text = str(caught.value)
    assert "1 missing (ln_post.bias)" in text
    assert "13 unexpected (transformer.resblocks.2" in text
    assert "1 of another shape (ln_pre.bias is [3], not [64])" in text
    assert "has the sizes of --arch toy-vit-deep-quickgelu" in text
    assert "\n" not in text


def test_a_wrong_layout_is_refused_with_the_one_that_fits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no agft checkpoint.*the keys fit --layout tecoa"):
        bring(tecoa_file(tmp_path / "t.pth.tar", openai_vit()), layout="agft")
    with pytest.raises(UserError, match=r"of no known layout.*agft: 'modules'"):
        bring(plain_file(tmp_path / "x.pt", {"weight": torch.ones(2)}))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        bring(tmp_path / "list.pt")


@pytest.mark.parametrize("changes", [
    {"add_prompter": {"prompt": torch.ones(1, 5, 768)}}, {"state_dict": {"pad_up": torch.ones(1, 3, 30, 224)}},
])  # fmt: skip
def test_a_prompt_tuned_model_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="learned visual prompts"):
        bring(tecoa_file(tmp_path / "t.pth.tar", openai_vit(), **changes))
    torch.save({"modules": {}, "params": {"image_prompt": torch.ones(1, 3, 32, 32)}}, tmp_path / "vpt.pth")
    with pytest.raises(UserError, match="image_prompt are learned visual prompts"):
        bring(tmp_path / "vpt.pth")


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return open, (str(self.folder / "executed"), "w")


def test_a_file_that_needs_code_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    path = tecoa_file(tmp_path / "t.pth.tar", openai_vit(), best_acc1=Malicious(tmp_path))
    with pytest.raises(UserError, match=r"reading it would run code \(io\.open\)"):
        bring(path)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"abc", lambda b: b[100:]])
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_a_damaged_file_is_refused(damage: Any, name: str, tmp_path: Path) -> None:
    whole = agft_file(tmp_path / "whole.pth", openai_vit()).read_bytes()
    (tmp_path / name).write_bytes(damage(whole))
    with pytest.raises(UserError, match=r"not a readable checkpoint|text, not tensors"):
        bring(tmp_path / name)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    encoder = openai_vit()
    encoder["proj"][0, 0] = float("inf")
    with pytest.raises(UserError, match=r"1 not finite \(proj\)"):
        bring(agft_file(tmp_path / "c.pth", encoder))


def test_what_is_missing_is_said_in_the_command_lines_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        import_checkpoint(tmp_path / "none.pth", VIT)
    path = agft_file(tmp_path / "c.pth", openai_vit())
    with pytest.raises(UnknownName, match=r"--arch.*'toy-vit-quickgel'.*toy-vit-quickgelu"):
        import_checkpoint(path, "toy-vit-quickgel")
    with pytest.raises(UserError, match="--base: OpenAI has no toy-vit-quickgelu"):
        import_checkpoint(path, VIT)
    with pytest.raises(MissingWeights, match="no such checkpoint"):
        import_checkpoint(path, VIT, base=str(tmp_path / "none.safetensors"))


def test_an_unrelated_base_is_seen_by_its_distance(tmp_path: Path) -> None:
    base = toy_clip(VIT)
    near = OrderedDict((name, value * 1.01) for name, value in base.visual.state_dict().items())
    assert bring(agft_file(tmp_path / "near.pth", near)).distance == pytest.approx(0.01, rel=1e-3)
    assert (bring(agft_file(tmp_path / "far.pth", openai_vit())).distance or 0) > 0.9


def test_what_openais_package_cannot_build_is_not_written_for_agfts_code(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.safetensors", toy_clip("toy-vit"))  # no QuickGELU
    with pytest.raises(UserError, match="has no toy-vit; use --layout open-clip"):
        export_agft(path, tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()
