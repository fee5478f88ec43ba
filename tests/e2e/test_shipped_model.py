"""A promoted model where none of this project is: in a bare environment with open_clip, and behind MLflow's server."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from infra.services import Services
from study.cli.main import main
from study.models.manifest import Manifest
from study.models.registry import project_head, register_promoted
from tests.support.services.bare import bare_environment
from tests.support.services.serving import post, served
from tests.support.shipped import corrupt, ship
from trainers.arithmetic import exact_math
from trainers.model.build import describe
from trainers.model.pretrained import load_clip
from trainers.model.robust import fingerprint_inputs
from trainers.model.weights import read_metadata
from trainers.schema.training import ModelConfig

pytestmark = pytest.mark.slow

MODELS = Path(__file__).parents[2] / "docs/models.md"
CLASSES = ["red disc", "green ring", "blue bar"]
PLAIN = """
import importlib.util, json, sys
absent = ["study", "trainers", "infra", "mlflow", "ray", "boto3", "optuna", "pandas"]
assert not [name for name in absent if importlib.util.find_spec(name)], "the environment is not bare"
import open_clip, torch
from safetensors.torch import load_file
folder, inputs = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + folder)
tokenizer = open_clip.get_tokenizer("local-dir:" + folder)
assert tokenizer(["a red disc"]).shape[0] == 1
given = load_file(inputs)
with torch.no_grad():
    images = model.eval().encode_image(given["images"], normalize=True)
    texts = model.encode_text(given["tokens"], normalize=True)
    print(json.dumps((model.logit_scale.exp() * images @ texts.T).flatten().tolist()))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture
def shipped(service_environment: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    name = f"served-{secrets.token_hex(4)}"
    manifest = ship(service_environment.bucket, name, tmp_path)
    uri = service_environment.mlflow_uri
    register_promoted(manifest, tracking_uri=uri)
    project_head(service_environment.bucket, name, uri)
    return manifest


def test_a_bare_environment_with_open_clip_computes_the_logits_of_training(
    shipped: Manifest, python: Path, tmp_path: Path
) -> None:
    pulled = CliRunner().invoke(main, ["pull", shipped.model, str(tmp_path / "model")])
    assert pulled.exit_code == 0, pulled.output
    clip = load_clip(ModelConfig(arch="small-clip", pretrained=f"local-dir:{tmp_path / 'model'}"))
    images, tokens = fingerprint_inputs(clip)
    save_file({"images": images.contiguous(), "tokens": tokens}, tmp_path / "inputs.safetensors")
    done = subprocess.run(
        [str(python), "-I", "-c", PLAIN, str(tmp_path / "model"), str(tmp_path / "inputs.safetensors")],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    expected = read_metadata(tmp_path / "model" / "open_clip_model.safetensors")["fingerprint"]
    scale = float(clip.logit_scale.exp())  # type: ignore[operator]
    assert found == pytest.approx(expected, abs=1e-4 * scale)
    print("largest difference of logits", max(abs(a - b) for a, b in zip(found, expected, strict=True)))


def pictures(number: int) -> list[bytes]:
    found = []
    for seed in range(number):
        content = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "PNG")
        found.append(content.getvalue())
    return found


def test_over_http_the_classes_are_those_of_open_clip_and_a_changed_byte_is_not_served(
    shipped: Manifest, service_environment: Services, tmp_path: Path
) -> None:
    import open_clip

    CliRunner().invoke(main, ["pull", shipped.model, str(tmp_path / "model")])
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    files = pictures(4)
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.open(io.BytesIO(each))) for each in files])  # type: ignore[operator]
        tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'model'}")([f"a photo of a {c}." for c in CLASSES])
        features = model.eval().encode_image(batch, normalize=True)
        logits = model.logit_scale.exp() * features @ model.encode_text(tokens, normalize=True).T
    expected = logits.softmax(1).tolist()
    coded = [base64.b64encode(each).decode() for each in files]
    environment = {**os.environ, **service_environment.environment()}
    with served(f"models:/{shipped.model}@champion", environment, tmp_path / "serve.log") as address:
        bodies = [
            {
                "dataframe_split": {"columns": ["image"], "data": [[each] for each in coded]},
                "params": {"classes": CLASSES},
            },
            {"dataframe_records": [{"image": each, "classes": CLASSES} for each in coded]},
            {"inputs": {"image": coded}, "params": {"classes": CLASSES}},
        ]
        for body in bodies:
            found = post(address, body)
            assert [max(row, key=row.get) for row in found] == [CLASSES[int(row.argmax())] for row in logits]
            assert [[row[c] for c in CLASSES] for row in found] == [pytest.approx(row, abs=1e-5) for row in expected]
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(address, {"dataframe_split": {"columns": ["image"], "data": [[coded[0]]]}})
        assert refused.value.code == 400
        assert "at least two class names" in json.load(refused.value)["message"]
    corrupt(shipped.weights.uri)
    environment["AGFT_CACHE"] = str(tmp_path / "another-cache")
    refused_start = pytest.raises(AssertionError, match=f"expected {shipped.weights.sha256}")
    with refused_start, served(f"models:/{shipped.model}@champion", environment, tmp_path / "serve-bad.log"):
        pass


def test_the_served_example_of_an_onnx_export_answers_with_open_clips_embeddings(
    shipped: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of docs/models.md, then `mlflow models serve`, as that page has them."""
    monkeypatch.chdir(tmp_path)
    for command in (["pull", shipped.model, "champion"], ["export", "champion", "champion-onnx", "--layout", "onnx"]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
    examples = re.findall(r"```python\n(.*?)```", MODELS.read_text(), re.DOTALL)
    [example] = [code for code in examples if "mlflow.onnx." in code]
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True, timeout=300)
    clip = load_clip(ModelConfig(arch="small-clip", pretrained=f"local-dir:{tmp_path / 'champion'}"))
    pixels = torch.rand(3, 3, *clip.visual.image_size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(describe(clip).preprocess[each]).view(1, 3, 1, 1) for each in ("mean", "std"))
    with torch.no_grad(), exact_math():
        expected = clip.encode_image((pixels - mean) / std, normalize=True)
    with served("served", os.environ, tmp_path / "serve-onnx.log") as address:
        found = post(address, {"inputs": {"pixels": pixels.tolist()}})
    torch.testing.assert_close(torch.tensor(found["embedding"]), expected, atol=1e-5, rtol=1e-4)
