"""Promoted models in use, on real S3 and a real MLflow server: registered, loaded, pulled, damaged, repaired."""

from __future__ import annotations

import base64
import io
import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import study.models.ship
from infra import storage
from infra.errors import ChecksumMismatch
from infra.services import Services
from infra.tracking import calls as mlflow_calls
from infra.tracking.registry import registered
from study.artifacts.sources import use_s3_weights
from study.cli.main import main
from study.models.registry import project_head, register_promoted, repair
from study.tracking import EXPERIMENT
from tests.support.shipped import corrupt, set_head, ship
from tests.support.small import small_clip
from trainers.errors import MissingWeights
from trainers.model.pretrained import load_clip
from trainers.model.robust import fingerprint
from trainers.schema.training import ModelConfig

CLASSES = ["red disc", "green ring", "blue bar"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service_environment: object) -> Path:
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def name() -> str:
    return f"robust-{secrets.token_hex(4)}"


PAIRS: dict[str, list[dict[str, Any]]] = {}


@pytest.fixture
def two(cache: Path, tmp_path: Path, service_environment: Services) -> list[dict[str, Any]]:
    """Two promoted versions, both in MLflow: made once, changed by no test."""
    if service_environment.mlflow_uri not in PAIRS:
        PAIRS[service_environment.mlflow_uri] = registered_pair("robust-pair", tmp_path, service_environment)
    return PAIRS[service_environment.mlflow_uri]


def registered_pair(name: str, tmp_path: Path, service_environment: Services) -> list[dict[str, Any]]:
    manifests = [ship(service_environment.bucket, name, tmp_path, seed=seed, created=1.76e9) for seed in (0, 1)]
    for manifest in manifests:
        register_promoted(manifest, bucket=service_environment.bucket, tracking_uri=service_environment.mlflow_uri)
    project_head(service_environment.bucket, name, service_environment.mlflow_uri)
    return manifests


def agft(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = agft(*arguments)
    assert result.exit_code == 0, result.output
    return result


def picture(seed: int = 0, *, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def plain_open_clip(folder: Path, pixels: np.ndarray) -> list[float]:
    """Probabilities by open_clip alone."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([f"a photo of a {each}." for each in CLASSES])
    with torch.no_grad():
        image = model.eval().encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)
        text = model.encode_text(tokens, normalize=True)
        return list((model.logit_scale.exp() * image @ text.T).softmax(-1)[0].tolist())


def test_a_registered_version_predicts_what_open_clip_does_and_holds_neither_pickle_nor_weights(
    two: list[dict[str, Any]], service_environment: Services, tmp_path: Path
) -> None:
    import mlflow

    name = two[0]["model"]
    mlflow.set_tracking_uri(service_environment.mlflow_uri)
    done("pull", name, tmp_path / "pulled")
    pixels = picture()
    expected = plain_open_clip(tmp_path / "pulled", pixels)
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    coded = base64.b64encode(png(pixels)).decode()
    for image in (png(pixels), coded, pixels, pixels.tolist(), pixels.transpose(2, 0, 1)):
        found = model.predict(pd.DataFrame({"image": [image]}), params={"classes": CLASSES})
        assert list(found.columns) == CLASSES
        assert found.iloc[0].tolist() == pytest.approx(expected, abs=1e-5)
    several = model.predict({"image": [coded, png(picture(1))]}, params={"classes": CLASSES})
    assert several.iloc[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert several.iloc[1].tolist() != pytest.approx(expected, abs=1e-5)
    own = model.predict(pd.DataFrame({"image": [coded, coded], "classes": [CLASSES, CLASSES[:2]]}))
    assert own.iloc[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert own.iloc[1][CLASSES[:2]].sum() == pytest.approx(1)
    assert np.isnan(own.iloc[1][CLASSES[2]])
    assert model.predict(model.input_example, params={"classes": CLASSES}).sum(axis=1).iloc[0] == pytest.approx(1)
    # what MLflow keeps
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias(name, "champion")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(tmp_path / "model")))
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "served_model.py", "README.md", "results.png", "manifest.json"} <= set(files)
    assert not [file for file in files if file.endswith((".pkl", ".safetensors", ".bin", ".pt"))]
    assert sum(path.stat().st_size for path in files.values()) < 300_000
    assert str(Path(main.callback.__code__.co_filename).parent) not in files["MLmodel"].read_text()
    assert version.tags["agft.weights.sha256"] == two[1]["weights"]["sha256"]
    assert version.description.startswith(f"# {name}, version 2")
    logged = client.get_logged_model(version.tags["agft.logged_model_id"])
    metrics = {(metric.key, metric.dataset_name): metric.value for metric in logged.metrics}
    assert metrics["final_robust_accuracy", None] == pytest.approx(0.4)
    assert metrics["final_robust_accuracy/small-b", "small-b"] == pytest.approx(0.4)
    inputs = client.get_run(version.run_id).inputs.dataset_inputs
    assert {(each.dataset.name, each.tags[0].value) for each in inputs} >= {
        ("small-a", "final"),
        ("small-other", "confirm"),
    }


def test_a_changed_byte_is_refused_by_every_loading_path_with_one_message(
    name: str, cache: Path, service_environment: Services, tmp_path: Path
) -> None:
    import mlflow

    two = registered_pair(name, tmp_path, service_environment)
    mlflow.set_tracking_uri(service_environment.mlflow_uri)
    use_s3_weights()
    uri, sha256 = two[1]["weights"]["uri"], two[1]["weights"]["sha256"]
    done("pull", f"{name}@champion", tmp_path / "good")
    corrupt(uri)
    message = rf"has SHA-256 [0-9a-f]{{64}}, expected {sha256}"
    refused = agft("pull", name, tmp_path / "bad")
    assert refused.exit_code == 1
    assert "Traceback" not in refused.output
    assert sha256 in refused.stderr
    assert not (tmp_path / "bad").exists()
    assert not list(tmp_path.glob(".bad*"))
    with pytest.raises(mlflow.exceptions.MlflowException, match=message):
        mlflow.pyfunc.load_model(f"models:/{name}@champion")
    with pytest.raises(ChecksumMismatch, match=message):
        load_clip(ModelConfig(arch="small-clip", pretrained=uri.rpartition("/")[0] + "/"))
    bucket, key = storage.split_uri(uri)
    body = storage.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    storage.client().put_object(Bucket=bucket, Key=key, Body=body)  # another program's upload: no SHA-256 beside it
    with pytest.raises(ChecksumMismatch, match=message):
        load_clip(ModelConfig(arch="small-clip", pretrained=uri.rpartition("/")[0] + "/"))
    assert fingerprint(load_clip(ModelConfig(arch="small-clip", pretrained=f"local-dir:{tmp_path / 'good'}")))
    weights = tmp_path / "good" / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MissingWeights, match=message):
        load_clip(ModelConfig(arch="small-clip", pretrained=f"local-dir:{tmp_path / 'good'}"))


def test_a_kept_copy_that_was_damaged_is_fetched_again(
    two: list[dict[str, Any]], service_environment: Services, cache: Path
) -> None:
    import mlflow

    name = two[0]["model"]
    mlflow.set_tracking_uri(service_environment.mlflow_uri)
    mlflow.pyfunc.load_model(f"models:/{name}@champion")
    [kept] = cache.rglob("open_clip_model.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + b"x")
    mlflow.pyfunc.load_model(f"models:/{name}@champion")
    assert kept.read_bytes() == whole


def test_aliases_follow_head_and_what_mlflow_missed_is_made_up(
    name: str, cache: Path, tmp_path: Path, service_environment: Services
) -> None:
    uri, bucket = service_environment.mlflow_uri, service_environment.bucket
    ship(bucket, name, tmp_path, seed=0)
    key, reason = f"demo:{name}", {"reason": "the demo is tomorrow"}
    second = ship(bucket, name, tmp_path, seed=1, forced=reason, study_key=key)
    client = mlflow_calls.connect(uri)
    run = mlflow_calls.ensure_run(
        client, mlflow_calls.experiment_id(client, EXPERIMENT), key, name="demo", parent_run_id=None, params={},
        tags={}, start_time_ms=1, reopen=False,
    )  # fmt: skip
    facts = json.loads(done("models", name, "--json").stdout)[0]
    assert [row["mlflow_version"] for row in facts["versions"]] == [None, None]
    assert "alias champion: MLflow says nothing, HEAD.json says version 2" in facts["differences"]
    assert project_head(bucket, name, uri) == {"champion": None, "previous": None}
    assert repair(bucket, name, uri, say=lambda _: None) == 2
    assert registered(uri, name).aliases == {"champion": 2, "previous": 1}
    assert client.get_model_version(name, "2").run_id == run  # the study's own
    assert json.loads(done("models", name, "--json").stdout)[0]["differences"] == []
    table = done("models", name).stdout
    for word in ("champion", "previous", "60.0 %", "40.0 %", "forced: the demo is tomorrow"):
        assert word in table
    # somebody moves an alias by hand, and rolls back without MLflow
    set_head(bucket, name, 1, None)
    said = done("models", name).stdout
    assert "alias champion: MLflow says version 2, HEAD.json says version 1" in said
    assert "agft models" in said
    done("models", name, "--repair")
    assert registered(uri, name).aliases == {"champion": 1}
    assert repair(bucket, name, uri, say=lambda _: None) == 0
    assert second["weights"]["sha256"] in json.dumps(facts)


def test_models_are_shown_while_mlflow_is_away(two: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said = done("models").stdout
    assert two[0]["model"] in said
    assert "not compared: MLflow at http://127.0.0.1:9" in said


def test_a_pulled_version_is_whole_and_a_folder_with_something_in_it_is_left_alone(
    two: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = two[0]["model"]
    target = tmp_path / "here"
    target.mkdir()
    monkeypatch.setattr(study.models.ship, "SHOWN_BYTES", 0)
    monkeypatch.setattr(study.models.ship, "SHOWN_SECONDS", 0.0)
    result = done("pull", f"{name}@previous", target)
    assert "version 1" in result.stdout
    assert "MB, about 0 s left" in result.stderr
    assert {path.name for path in target.iterdir()} == {
        "README.md", "manifest.json", "open_clip_config.json", "open_clip_model.safetensors", "results.png"
    }  # fmt: skip
    assert storage.hash_file(target / "open_clip_model.safetensors") == two[0]["weights"]["sha256"]
    clip = small_clip(0)
    with torch.no_grad():
        clip.logit_scale.fill_(2.0)  # type: ignore[operator, union-attr]
    loaded = open_clip.create_model(f"local-dir:{target}").eval()
    assert fingerprint(loaded) == pytest.approx(fingerprint(clip), abs=1e-5)
    before = {path: path.read_bytes() for path in target.iterdir()}
    refused = agft("pull", name, target)
    assert refused.exit_code == 2
    assert "not an empty folder" in refused.stderr
    assert {path: path.read_bytes() for path in target.iterdir()} == before


def test_wrong_names_are_answered_with_the_nearest_and_exit_code_2(two: list[dict[str, Any]], tmp_path: Path) -> None:
    name = two[0]["model"]
    for arguments, words in (
        (("pull", name + "x", tmp_path / "a"), f"did you mean {name!r}?"),
        (("pull", f"{name}@champoin", tmp_path / "a"), "did you mean 'champion'?"),
        (("pull", f"{name}@7", tmp_path / "a"), "has no version 7; versions: 1, 2"),
        (("models", name[:-1]), f"did you mean {name!r}?"),
        (("diff", f"{name}@1", f"{name}@9"), "has no version 9"),
        (("pull", "a b", tmp_path / "a"), "expected NAME"),
    ):
        result = agft(*arguments)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
        assert not (tmp_path / "a").exists()


def test_diff_of_two_versions_shows_only_what_differs(
    name: str, cache: Path, tmp_path: Path, service_environment: Services
) -> None:
    ship(service_environment.bucket, name, tmp_path)
    changed = ship(service_environment.bucket, name, tmp_path, seed=1, trial=4)
    changed_config = json.loads(json.dumps(changed["config"]))
    changed_config["train"]["optimizer"]["lr"] = 1e-3
    ship(service_environment.bucket, name, tmp_path, seed=2, config=changed_config)
    found = json.loads(done("diff", f"{name}@1", f"{name}@3", "--json").stdout)["differences"]
    assert found["configuration"] == {"train.optimizer.lr": ["0.0004", "0.001"]}
    assert set(found["what"]) == {"version", "sha256"}
    assert "numbers" not in found
    table = done("diff", f"{name}@1", f"{name}@3").stdout
    assert "train.optimizer.lr" in table
    assert "scale_ratio" not in table
    assert "do not differ" in done("diff", f"{name}@1", f"{name}@1").stdout
