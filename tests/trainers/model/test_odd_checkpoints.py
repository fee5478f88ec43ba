"""Checkpoints as people have them: read whatever wraps them, or called what they are; never half loaded, never run."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.official import base_weights, toy_architectures, toy_clip
from trainers.errors import UserError
from trainers.model.importing import import_checkpoint
from trainers.model.pretrained import check_file, load_clip
from trainers.model.weights import is_weights_file, save_weights
from trainers.schema.training import ModelConfig

VIT = "toy-vit-quickgelu"
State = dict[str, Tensor]


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_architectures(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture(scope="module")
def state() -> State:
    return toy_clip(VIT, seed=5).state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def hugging_face(state: State) -> State:
    """What `transformers.CLIPModel` calls these tensors; written from its modeling_clip.py."""
    found: State = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    for tower, prefix in (("vision_model.", "visual."), ("text_model.", "")):
        for name, value in state.items():
            own = name.removeprefix(prefix)
            if name.startswith("visual.") != (prefix == "visual."):
                continue
            if match := re.fullmatch(
                r"transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias|in_proj_weight|in_proj_bias)", own
            ):
                number, module, leaf = match.groups()
                layer = f"{tower}encoder.layers.{number}."
                if leaf.startswith("in_proj"):
                    for part, third in zip("qkv", value.chunk(3), strict=True):
                        found[f"{layer}self_attn.{part}_proj.{leaf[8:]}"] = third.clone()
                else:
                    theirs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                              "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}[module]  # fmt: skip
                    found[f"{layer}{theirs}.{leaf}"] = value
            elif own in ("proj", "text_projection"):
                found["visual_projection.weight" if own == "proj" else "text_projection.weight"] = value.T.clone()
            elif own == "logit_scale":
                found[own] = value
            else:
                inner = {"class_embedding": "embeddings.class_embedding",
                         "conv1.weight": "embeddings.patch_embedding.weight",
                         "positional_embedding": "embeddings.position_embedding.weight",
                         "token_embedding.weight": "embeddings.token_embedding.weight"}  # fmt: skip
                theirs = inner.get(own, own.replace("ln_pre", "pre_layrnorm").replace("ln_post", "post_layernorm")
                                   .replace("ln_final", "final_layer_norm"))  # fmt: skip
                found[f"{tower}{theirs}"] = value
    return found


WRAPPED: dict[str, Callable[[State], Any]] = {
    "as it is": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled, in DataParallel": lambda state: prefixed(state, "module._orig_mod."),
    "a prefix of one's own": lambda state: prefixed(state, "clip."),
    "two of them": lambda state: prefixed(state, "net.backbone."),
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 1.0}},
    "model": lambda state: {"model": prefixed(state, "module."), "args": {"lr": 0.1}},
    "two deep": lambda state: {"checkpoint": {"state_dict": state}, "epoch": 3},
    "its average beside it": lambda state: {"state_dict": state, "state_dict_ema": state},
    "its average alone": lambda state: {"ema_state_dict": state, "decay": 0.999},
    "DeepSpeed": lambda state: {"module": state, "ds_config": {"stage": 1}},
    "parameters": lambda state: {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in state.items()},
    "with position_ids": lambda state: {**state, "text.position_ids": torch.arange(5)},
    "Lightning, with a criterion": lambda state: {
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(3)}, "epoch": 3,
    },
    "Hugging Face": hugging_face,
    "Hugging Face, wrapped": lambda state: {"state_dict": prefixed(hugging_face(state), "module.")},
    "Hugging Face, a prefix": lambda state: prefixed(hugging_face(state), "clip."),
    "Hugging Face, Lightning": lambda state: {
        "state_dict": {**prefixed(hugging_face(state), "model."), "loss.weight": torch.ones(2)}, "epoch": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_whole_clip_is_read_whatever_is_around_it(wrap: Callable[[State], Any], state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(wrap(state), path)
    config = ModelConfig(arch=VIT, pretrained=str(path))
    check_file(config)
    for clip in (load_clip(config), import_checkpoint(path, VIT).clip):
        for name, value in clip.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_the_same_bytes_are_read_under_any_name(state: State, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "plain.bin")
    torch.save(state, tmp_path / "torch.safetensors")
    ours = save_weights(tmp_path / "ours.safetensors", toy_clip(VIT, seed=5)).rename(tmp_path / "ours.bin")
    assert is_weights_file(ours)
    for path in (tmp_path / "plain.bin", tmp_path / "torch.safetensors", ours):
        clip = load_clip(ModelConfig(arch=VIT, pretrained=str(path)))
        assert torch.equal(clip.state_dict()["visual.proj"], state["visual.proj"])


LEFT_OVER: dict[str, tuple[Callable[[State], Any], str]] = {
    "Lightning": (lambda state: {
        "state_dict": {**prefixed(state, "model."), "head.weight": torch.ones(3)}, "epoch": 3, "optimizer": {},
    }, "epoch, optimizer, head.weight"),
    "a head": (lambda state: {
        **prefixed(state, "backbone."), "fc.weight": torch.ones(2), "fc.bias": torch.ones(2),
    }, "fc.weight, fc.bias"),
    "Hugging Face": (lambda state: {"model": hugging_face(state), "args": {"lr": 0.1}}, "args"),
    "numbers as keys": (lambda state: {0: state, 1: 3}, "1"),
    "many": (lambda state: {"model": state, **{f"meter_{n}": n for n in range(8)}},
             "meter_0, meter_1, meter_2, meter_3, meter_4, meter_5 and 2 more"),
}  # fmt: skip


@pytest.mark.parametrize("old", [True, False], ids=["of old", "zip"])
@pytest.mark.parametrize("kind", LEFT_OVER)
def test_what_is_left_over_is_listed(kind: str, old: bool, state: State, tmp_path: Path) -> None:
    wrap, left = LEFT_OVER[kind]
    torch.save(wrap(state), tmp_path / "w.ckpt", _use_new_zipfile_serialization=not old)
    note = f"left over, and not used: {left}"
    assert check_file(ModelConfig(arch=VIT, pretrained=str(tmp_path / "w.ckpt"))) == note
    assert import_checkpoint(tmp_path / "w.ckpt", VIT).note == note


def test_a_torchscript_archive_gives_its_tensors_and_runs_nothing(state: State, tmp_path: Path) -> None:
    clip = toy_clip(VIT, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(clip, {"encode_image": torch.zeros(1, 3, 32, 32)}, check_trace=False)
        traced.save(str(tmp_path / "jit.pt"))
    read = load_clip(ModelConfig(arch=VIT, pretrained=str(tmp_path / "jit.pt"))).state_dict()
    assert all(torch.equal(read[name], value) for name, value in state.items())
    with zipfile.ZipFile(tmp_path / "jit.pt") as source, zipfile.ZipFile(tmp_path / "evil.pt", "w") as out:
        for entry in source.infolist():
            evil = entry.filename.endswith("data.pkl")
            out.writestr(entry.filename, pickle.dumps(Malicious(tmp_path)) if evil else source.read(entry))
    with pytest.raises(UserError, match=r"reading it would run code \(.*open\)"):
        import_checkpoint(tmp_path / "evil.pt", VIT)
    assert not (tmp_path / "executed").exists()


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return open, (str(self.folder / "executed"), "w")


def test_a_vision_model_of_hugging_face_is_an_encoder_for_the_import(state: State, tmp_path: Path) -> None:
    vision = {name: value for name, value in hugging_face(state).items() if name.startswith("vis")}
    torch.save(vision, tmp_path / "v.pt")
    found = import_checkpoint(tmp_path / "v.pt", VIT, base=str(base_weights(tmp_path, VIT)))
    assert torch.equal(found.clip.state_dict()["visual.proj"], state["visual.proj"])
    with pytest.raises(UserError, match=r"make weights of it first: agft import .*v\.pt --arch toy-vit-quickgelu"):
        load_clip(ModelConfig(arch=VIT, pretrained=str(tmp_path / "v.pt")))


def test_a_plain_state_dict_of_an_architecture_with_a_quickgelu_twin_must_say_which(tmp_path: Path) -> None:
    torch.save(toy_clip(VIT).state_dict(), tmp_path / "w.pt")
    config = ModelConfig(arch="toy-vit", pretrained=str(tmp_path / "w.pt"))
    said = r"does not say whether it was trained with QuickGELU.*toy-vit-quickgelu.*agft import \S+w\.pt .*--gelu"
    for use in (check_file, load_clip):
        with pytest.raises(UserError, match=rf"^model\.arch: .*{said}"):
            use(config)
    with pytest.raises(UserError, match=said):
        import_checkpoint(tmp_path / "w.pt", "toy-vit")
    meant = import_checkpoint(tmp_path / "w.pt", "toy-vit", gelu=True)
    ours = save_weights(tmp_path / "ours.safetensors", meant.clip)
    assert check_file(ModelConfig(arch="toy-vit", pretrained=str(ours))) == ""
    with pytest.raises(
        UserError, match=r"^model\.arch: .*ours\.safetensors holds a 'toy-vit', not a 'toy-vit-quickgelu'"
    ):
        check_file(ModelConfig(arch=VIT, pretrained=str(ours)))


def uses(path: Path, arch: str) -> list[Callable[[], object]]:
    """All that reads a file of weights."""
    config = ModelConfig(arch=arch, pretrained=str(path))
    return [lambda: check_file(config), lambda: load_clip(config), lambda: import_checkpoint(path, arch)]


@pytest.mark.parametrize("wrap", [*WRAPPED.values(), None], ids=[*WRAPPED, "safetensors"])
def test_nothing_around_a_state_dict_hides_that_it_does_not_say_which(
    wrap: Callable[[State], Any] | None, tmp_path: Path
) -> None:
    plain, path = toy_clip("toy-vit").state_dict(), tmp_path / "w.pt"
    if wrap is None:
        save_file({name: value.contiguous() for name, value in plain.items()}, path)
    else:
        torch.save(wrap(plain), path)
    for use in uses(path, "toy-vit"):
        with pytest.raises(UserError, match=r"does not say whether it was trained with QuickGELU.*toy-vit-quickgelu"):
            use()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 605157884\n"
NO_WEIGHTS = {
    "pointer.safetensors": (POINTER, "a git-lfs pointer instead of the file"),
    "pointer.pt": (POINTER, "a git-lfs pointer instead of the file"),
    "windows.pt": (POINTER.replace(b"\n", b"\r\n"), "a git-lfs pointer instead of the file"),
    "edited.bin": (b"\xef\xbb\xbf\n" + POINTER, "a git-lfs pointer instead of the file"),
    "xet.safetensors": (
        b"# xet version 0\nfilesize = 605157884\n",
        "text, not tensors; it begins with '# xet version 0'",
    ),
    "page.bin": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page or XML"),
    "denied.pt": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page or XML"),
    "config.pt": (b'{"error": "Repository not found"}', "JSON, not tensors"),
    "nothing.safetensors": (b"", "empty: 0 bytes"),
    "blank.pt": (b" \n\n", "empty: nothing but white space"),
    "none.safetensors": ((2).to_bytes(8, "little") + b"{}", "empty: a dictionary that holds nothing"),
    "zeros.pt": (bytes(4096), "nothing but zeros"),
    "w.pt.gz": (b"\x1f\x8b\x08" + bytes(50), "an archive (gzip): unpack it first"),
    "w.pt.zst": (b"\x28\xb5\x2f\xfd" + bytes(50), "an archive (zstd): unpack it first"),
    "w.rar": (b"Rar!\x1a\x07" + bytes(50), "an archive (rar): unpack it first"),
    "paper.pt": (b"%PDF-1.7\n%\xe2\xe3\x01", "a PDF, not tensors"),
    "array.npy": (b"\x93NUMPY\x01\x00" + bytes(50), "an array of numpy"),
    "short.safetensors": ((500).to_bytes(8, "little") + b'{"a": {"dtype":', "perhaps truncated"),
    "large.safetensors": ((1 << 40).to_bytes(8, "little") + b"{}", "perhaps truncated ("),
    "text.pt": (b"epoch,loss\n1,0.5\n", "text, not tensors; it begins with 'epoch,loss'"),
    "denied.safetensors": (b"Access denied", "text, not tensors; it begins with 'Access denied'"),
    "noise.pt": (b"\x01\x02\x03\x04", "not a readable checkpoint, perhaps truncated (Unsupported operand 1)"),
}


@pytest.mark.parametrize(
    ("name", "content", "what"), [(name, *each) for name, each in NO_WEIGHTS.items()], ids=NO_WEIGHTS
)
def test_a_file_that_is_none_of_weights_is_called_what_it_is(
    name: str, content: bytes, what: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    config = ModelConfig(arch=VIT, pretrained=str(path))
    for use in (check_file, load_clip):
        with pytest.raises(
            UserError, match=rf"^model\.pretrained: {re.escape(str(path))}: .*{re.escape(what)}"
        ) as told:
            use(config)
        assert not re.search("header too|documentation|StopIteration", str(told.value))
    with pytest.raises(UserError, match=re.escape(what)):
        import_checkpoint(path, VIT)


@pytest.mark.parametrize(
    ("content", "what"),
    [({}, "empty: a dictionary that holds nothing"),
     ({"state_dict": {}}, "empty: no tensor under its keys ('state_dict')"),
     ({"epoch": 3, "args": {"lr": 0.1}}, "empty: no tensor under its keys ('epoch', 'args')"),
     ({"model": {"state_dict": {}}}, "empty: no tensor under its keys ('model')"),
     ([], "holds a list, not a dictionary of tensors"), (None, "holds a NoneType"), (torch.ones(3), "holds a Tensor")],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)  # fmt: skip
def test_a_checkpoint_without_tensors_is_called_empty(content: object, what: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    for use in uses(tmp_path / "w.pt", VIT):
        with pytest.raises(UserError, match=re.escape(f"w.pt: {what}")):
            use()


HALF = {
    "vision_model.embeddings.class_embedding": torch.zeros(768),
    "text_model.embeddings.token_embedding.weight": torch.zeros(4, 4),
    "logit_scale": torch.ones(()),
}
SIGLIP = {"vision_model.embeddings.patch_embedding.weight": torch.ones(3, 3), "logit_bias": torch.ones(1)}


@pytest.mark.parametrize(
    ("change", "what"),
    [(lambda state: HALF, "does not fit the whole toy-vit-quickgelu: 47 missing ("),
     (lambda state: {**hugging_face(state), "classifier.weight": torch.ones(3)}, "1 unexpected (classifier.weight)"),
     (lambda state: {n: v for n, v in hugging_face(state).items() if not n.endswith("0.self_attn.v_proj.bias")},
      "2 missing ("),
     (lambda state: SIGLIP, "of Hugging Face's layout, but not of its CLIPModel or CLIPVisionModel"),
     (lambda state: {"state_dict": prefixed(SIGLIP, "vision_model.")}, "name open_clip's own weights of this model")],
    ids=["a part", "one more", "one less", "another model", "another model, wrapped"],
)  # fmt: skip
def test_hugging_faces_layout_is_known_where_it_cannot_be_read(
    change: Callable[[State], Any], what: str, state: State, tmp_path: Path
) -> None:
    torch.save(change(state), tmp_path / "w.pt")
    for use in uses(tmp_path / "w.pt", VIT):
        with pytest.raises(UserError, match=re.escape(what)):
            use()


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    config = ModelConfig(arch=VIT, pretrained=str(tmp_path / "w.pt"))
    for use in (lambda: is_weights_file(tmp_path / "w.pt"), lambda: check_file(config), lambda: load_clip(config),
                lambda: import_checkpoint(tmp_path / "w.pt", VIT)):  # fmt: skip
        with pytest.raises(UserError, match=r"w\.pt: not a regular file"):
            use()


def test_what_cannot_be_one_model_is_refused_with_what_is_there(state: State, tmp_path: Path) -> None:
    nan = {**state, "visual.proj": state["visual.proj"] * float("nan")}
    wrong: dict[str, tuple[Any, str]] = {
        "two.pt": ({**prefixed(state, "student."), **prefixed(state, "teacher.")}, r"\(student\.\*, teacher\.\*\)"),
        "groups.pt": ({"a": state, "b": state}, r"several models \(a, b\)"),
        "nan.pt": (nan, r"1 not finite \(visual\.proj\)"),
        "more.pt": ({**state, "head.weight": torch.ones(2)}, r"1 unexpected \(head\.weight\)"),
        "less.pt": ({n: v for n, v in state.items() if n != "logit_scale"}, r"1 missing \(logit_scale\)"),
        "size.pt": ({**state, "visual.positional_embedding": torch.ones(10, 64)}, r"is \[10, 64\], not \[5, 64\]"),
    }  # fmt: skip
    for name, (content, what) in wrong.items():
        torch.save(content, tmp_path / name)
        for use in (check_file, load_clip):
            with pytest.raises(UserError, match=what):
                use(ModelConfig(arch=VIT, pretrained=str(tmp_path / name)))
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("packed/data.pkl", bytes(30_000_000))
    with pytest.raises(UserError, match="packed files, which torch does not write"):
        import_checkpoint(tmp_path / "packed.pt", VIT)


def test_a_header_that_is_no_mapping_is_no_file_of_ours(tmp_path: Path) -> None:
    for number, text in enumerate(("[1]", "[" * 5000, "{", "null", '{"kind": "weights"}')):
        path = tmp_path / f"{number}.safetensors"
        save_file({"weight": torch.ones(2)}, path, metadata={"agft": text})
        with pytest.raises(UserError, match=re.escape(str(path))):
            load_clip(ModelConfig(arch=VIT, pretrained=str(path)))


def test_one_reader_serves_modules_that_are_no_clip(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(UserError, match=r"its keys \('weight', 'bias'\) are of no known layout"):
        import_checkpoint(tmp_path / "linear.pt", VIT)
