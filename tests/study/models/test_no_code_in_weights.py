"""A pickle that runs code, placed wherever weights are read from, is not executed."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest

from study.models.registry import save_pyfunc
from study.models.served_model import fetch
from tests.support.shipped import manifest_of
from tests.support.small import small_clip
from trainers.model.importing import import_checkpoint
from trainers.model.pretrained import load_clip
from trainers.model.weights import export_open_clip, load_weights, save_weights
from trainers.schema.training import ModelConfig
from trainers.training.state import load_state


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def bait(tmp_path: Path, marker: Path) -> bytes:
    """The pickle, which does what it should when it is unpickled."""
    content = pickle.dumps({"state_dict": Trap(marker)})
    pickle.loads(content)  # noqa: S301
    assert marker.exists()
    marker.unlink()
    return content


def placed(folder: Path, name: str, bait: bytes) -> Path:
    """An export whose weights file is the pickle."""
    weights = save_weights(folder / "good.safetensors", small_clip())
    export = export_open_clip(weights, folder / "export")
    (export / "open_clip_model.safetensors").unlink()
    (export / name).write_bytes(bait)
    return export


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"]
)
def test_in_an_export_folder(name: str, tmp_path: Path, bait: bytes, marker: Path) -> None:
    export = placed(tmp_path, name, bait)
    loaders: list[Callable[[], object]] = [
        lambda: load_clip(ModelConfig(arch="small-clip", pretrained=f"local-dir:{export}")),
        lambda: open_clip.create_model_and_transforms(f"local-dir:{export}"),
    ]
    for load in loaders:
        with pytest.raises(Exception, match=r"."):
            load()
        assert not marker.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth.tar"])
def test_as_a_file(name: str, tmp_path: Path, bait: bytes, marker: Path) -> None:
    path = tmp_path / name
    path.write_bytes(bait)
    loaders: list[Callable[[], object]] = [
        lambda: load_clip(ModelConfig(arch="ViT-B-32", pretrained=str(path))),
        lambda: import_checkpoint(path, "ViT-B-32"),
        lambda: load_weights(path),
        lambda: load_state(path),
    ]
    for load in loaders:
        with pytest.raises(ValueError, match=r"."):
            load()
        assert not marker.exists()


def test_as_the_promised_weights_of_a_registered_version(
    tmp_path: Path, bait: bytes, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the manifest, too, can promise the pickle's own SHA-256: it is still only read as tensors."""
    import mlflow.pyfunc

    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    sha256 = hashlib.sha256(bait).hexdigest()
    uri = "s3://nowhere/open_clip_model.safetensors"
    entry = tmp_path / "cache" / "weights" / hashlib.sha256(sha256.encode()).hexdigest()[:32]
    entry.mkdir(parents=True)
    (entry / "open_clip_model.safetensors").write_bytes(bait)
    assert fetch(uri, sha256).read_bytes() == bait
    config = (placed(tmp_path, "x.bin", bait) / "open_clip_config.json").read_bytes()
    folder = save_pyfunc(manifest_of(weights={"uri": uri, "sha256": sha256}), config, tmp_path / "model")
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    with pytest.raises(Exception, match=r"(?i)header|safetensors"):
        mlflow.pyfunc.load_model(str(folder))
    assert not marker.exists()


def test_the_served_file_imports_nothing_of_this_project() -> None:
    source = Path(save_pyfunc.__code__.co_filename).with_name("served_model.py").read_text()
    for package in ("study", "trainers", "infra"):
        assert f"import {package}" not in source
        assert f"from {package}" not in source
    for word in ("pickle", "torch.load", "eval(", "exec("):
        assert word not in source.replace("model.eval()", "").replace("unpickling", "")
