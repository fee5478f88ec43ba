"""Files: what goes in comes out, plain open_clip reads the exports, and nothing damaged or foreign gets in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from tests.support.small import CLASSES, Flat, small_clip, trial
from trainers import files
from trainers.arithmetic import exact_math
from trainers.errors import UserError
from trainers.model.build import describe
from trainers.model.robust import RobustCLIP, fingerprint
from trainers.model.weights import (
    DTYPES,
    CheckpointError,
    export_open_clip,
    hash_tensors,
    is_weights_file,
    load_weights,
    read_metadata,
    save_plain,
    save_weights,
)
from trainers.objectives import Losses
from trainers.schema.records import EpochRecord, Score
from trainers.schema.training import OptimizerConfig, Trainable, TrainConfig
from trainers.training.state import load_state, restore, save_state
from trainers.training.trainable import select_trainable
from trainers.training.update import Updater

RECORD = EpochRecord(
    epoch=1, timestamp_ms=1, steps=3, train_loss=1 / 3, parts={"target": 1 / 3}, lr=1e-4, grad_norm=2,
    clean_accuracy=0.5, robust_accuracy=0.25, datasets={"set": {"1/255": Score.of(correct=2, robust=1, total=4)}},
    feasible=True, best_epoch=1, best_clean_accuracy=0.5, best_robust_accuracy=0.25, best_feasible=True,
    train_seconds=0.1, eval_seconds=0.2, images_per_second=30,
)  # fmt: skip


def weights(folder: Path) -> Path:
    return save_weights(folder / "w.safetensors", small_clip(), config={"seed": 3}, record=RECORD, extra={"by": "test"})


def test_equal_weights_make_equal_files(tmp_path):
    """Byte for byte: the library alone writes the header's entries in another order every time."""
    later = RECORD.model_copy(update={"timestamp_ms": 99, "train_seconds": 7.0, "images_per_second": 1.0})
    paths = [weights(tmp_path / str(number)) for number in range(12)]
    more = {"config": {"seed": 3}, "extra": {"by": "test"}}
    paths.append(save_weights(tmp_path / "later.safetensors", small_clip(), record=later, **more))
    assert len({path.read_bytes() for path in paths}) == 1
    exports = [export_open_clip(path, tmp_path / f"export-{n}") for n, path in enumerate(paths)]
    assert len({(folder / "open_clip_model.safetensors").read_bytes() for folder in exports}) == 1


def test_a_file_is_laid_out_as_the_library_lays_it_out(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}{place}é": (50 * torch.randn(3, place + 1, generator=draw)).to(dtype)
        for place, dtype in enumerate(DTYPES) for name in ("z", "a.b", "a")
    }  # fmt: skip
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "turned": torch.randn(4, 6, generator=draw).T}
    ours = save_plain(tmp_path / "ours.safetensors", tensors).read_bytes()
    theirs = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})
    headers = []
    for data in (ours, theirs):
        end = 8 + int.from_bytes(data[:8], "little")
        headers.append((end % 8, list(json.loads(data[8:end]).items()), data[end:]))
    assert headers[0] == headers[1]


TRAIN = {
    "sgd": TrainConfig(optimizer=OptimizerConfig(name="sgd", lr=0.01), ema=0.9),
    "adamw": TrainConfig(optimizer=OptimizerConfig(name="adamw", lr=0.01), trainable=Trainable(part="layer_norms")),
    "fp16": TrainConfig(precision="fp16", optimizer=OptimizerConfig(lr=0.01)),
    "prompt": TrainConfig(trainable=Trainable(part="visual_prompt", prompt_width=4), ema=0.5),
}


def update(model: RobustCLIP, updater: Updater, gray: float) -> None:
    updater.begin()
    updater.add(Losses(model.embed(torch.full((2, 3, 16, 16), gray)).square().sum()))
    updater.finish()


@pytest.mark.parametrize("name", list(TRAIN))
def test_a_state_continues_where_it_was_saved_to_the_last_bit(name: str, tmp_path: Path) -> None:
    def fresh(seed: int) -> tuple[RobustCLIP, Updater]:
        model = RobustCLIP(small_clip(seed), precision=TRAIN[name].precision)
        return model, Updater(TRAIN[name], select_trainable(model, TRAIN[name].trainable), 9, torch.device("cpu"))

    config, (model, updater) = trial(tmp_path / "w.safetensors"), fresh(0)
    for _ in range(2):  # so that there are moments, averages and a loss scale
        update(model, updater, 0.5)
    path = save_state(tmp_path / "s.safetensors", model, updater, config=config, history=(RECORD,))
    state = load_state(path)
    assert (state.config, state.history, state.epoch, state.numbers["step"]) == (config, (RECORD,), 1, 2)
    other, again = fresh(5)
    restore(state, other, again)
    for one, its in ((model, updater), (other, again)):
        update(one, its, 0.3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(updater.averages, again.averages, strict=True))
    assert updater.numbers() == again.numbers()
    assert (updater.step, bool(updater.averages)) == (3, TRAIN[name].ema is not None)


def test_weights_come_back_equal_with_their_story(tmp_path: Path) -> None:
    path = weights(tmp_path)
    clip, original = load_weights(path), small_clip()
    assert all(torch.equal(clip.state_dict()[name], value) for name, value in original.state_dict().items())
    assert describe(clip) == describe(original)
    metadata = read_metadata(path)
    assert metadata["epoch"] == 1
    assert metadata["config"] == {"seed": 3}
    assert metadata["extra"] == {"by": "test"}
    assert metadata["record"] == RECORD.repeatable()


def test_plain_open_clip_loads_an_export_and_gives_identical_logits(tmp_path: Path) -> None:
    folder = export_open_clip(weights(tmp_path), tmp_path / "export")
    name = f"local-dir:{folder}"
    clip, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)([f"a {text}" for text in CLASSES])
    ours, images = load_weights(tmp_path / "w.safetensors"), torch.rand(4, 3, 16, 16)
    clip.eval()
    with torch.no_grad(), exact_math():
        assert torch.equal(clip.get_logits(images, tokens)[0], ours.get_logits(images, tokens)[0])  # type: ignore[operator]
    ours_cfg = describe(ours).preprocess
    normalize = preprocess.transforms[-1]
    assert (tuple(normalize.mean), tuple(normalize.std)) == (tuple(ours_cfg["mean"]), tuple(ours_cfg["std"]))


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    whole = weights(tmp_path).read_bytes()
    broken = tmp_path / "broken.safetensors"
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:length])
        for load in (load_weights, load_state, is_weights_file):
            with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
                load(broken)


def test_changed_weights_do_not_reproduce_the_fingerprint(tmp_path: Path) -> None:
    path = weights(tmp_path)
    metadata, tensors = read_metadata(path), load_file(path)
    tensors["visual.proj"][0] += 1
    header = {"agft": json.dumps({**metadata, "tensors_sha256": hash_tensors(tensors)}), "format": "pt"}
    save_file(tensors, path, metadata=header)
    with pytest.raises(CheckpointError, match="does not reproduce its fingerprint"):
        load_weights(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999999])
def test_one_changed_bit_is_refused_though_no_logit_would_tell(share: float, tmp_path: Path) -> None:
    path = save_weights(tmp_path / "weights.safetensors", small_clip())
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header + 4 * int(share * (len(content) - header) / 4)] ^= 1  # the least bit of a number
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged: its tensors have SHA-256 \w+, expected \w+"):
        load_weights(path)


def test_an_architecture_that_was_redefined_is_noticed(tmp_path: Path) -> None:
    path = weights(tmp_path)
    metadata = read_metadata(path)
    metadata["model_cfg"]["quick_gelu"] = True  # same shapes, another function
    save_file(load_file(path), path, metadata={"agft": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="fingerprint"):
        load_weights(path)
    metadata["model_cfg"]["embed_dim"] = 8
    save_file(load_file(path), path, metadata={"agft": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_weights(path)


@pytest.mark.parametrize("change", [{"kind": "state"}, {"format": 99}, {"kind": None}])
def test_a_file_of_another_kind_or_format_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = weights(tmp_path)
    save_file(load_file(path), path, metadata={"agft": json.dumps({**read_metadata(path), **change})})
    with pytest.raises(CheckpointError, match=r"expected a weights file|format 99"):
        load_weights(path)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return open, (str(self.folder / "executed"), "w")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Malicious(tmp_path)))
    torch.save(Malicious(tmp_path), tmp_path / "evil.pt")
    for load in (load_weights, load_state):
        for file in (path, tmp_path / "evil.pt"):
            with pytest.raises(CheckpointError):
                load(file)
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        load_state(tmp_path / "none.safetensors")


def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path)
    before = path.read_bytes()

    def crash(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        save_weights(path, small_clip(1))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_fingerprint_does_not_depend_on_the_mode_a_model_is_in() -> None:
    clip = small_clip()
    expected = fingerprint(clip)
    clip.train()
    assert fingerprint(clip) == expected
    assert clip.training


def test_flat_models_of_the_tests_are_not_mistaken_for_clips(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"not made by trainers\.model"):
        save_weights(tmp_path / "flat.safetensors", Flat(torch.eye(3)))
