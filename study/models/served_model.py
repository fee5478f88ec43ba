"""The promoted model as MLflow serves it: one file that is shipped as it stands, next to a configuration.

It imports nothing of this project, so it runs wherever its requirements are installed. MLflow executes this file
instead of unpickling an object ("models from code"). The weights are not in MLflow: they are fetched from S3 into the
local cache (`$AGFT_CACHE`, the one that the rest of the project uses) and used only if they have the promised SHA-256.
S3's address and keys come from the environment.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

CONFIG, WEIGHTS, SIGNATURE = "open_clip_config.json", "open_clip_model.safetensors", "model.sig"
BATCH = 64
KEPT_CLASS_LISTS = 16


class RobustClassifier(mlflow.pyfunc.PythonModel):
    """Zero-shot classification: images and class names in, one probability a class out."""

    _skip_type_hint_validation = True  # the signature says what is checked; without this MLflow warns about hints

    def load_context(self, context: Any) -> None:
        """Fetch, check and load; everything that `predict` needs stays in memory."""
        import open_clip

        promised = {key: context.model_config["weights"][key] for key in ("uri", "sha256")}
        weights = fetch(**promised)
        config = Path(context.artifacts["open_clip_config"]).read_bytes()
        if key := os.environ.get("AGFT_PUBLIC_KEY"):
            check_signature(promised["uri"], weights, config, Path(key).expanduser())
        with tempfile.TemporaryDirectory(prefix="agft-serve-") as folder:
            (Path(folder) / CONFIG).write_bytes(config)
            (Path(folder) / WEIGHTS).symlink_to(weights)
            model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
            self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.preprocess = preprocess
        self.templates = tuple(context.model_config["templates"])
        self.embedded = functools.lru_cache(maxsize=KEPT_CLASS_LISTS)(self._embedded)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
        """One row an image, one column a class; a class that was not asked of an image is NaN there.

        `model_input`: images, or a table with a column `image` and optionally `classes`. An image is the bytes or the
        base64 text of a file, or an array: [H, W, 3], [3, H, W] or [H, W], integers of 0..255 or floats of 0..1.
        `params`: `classes` for all images, and `templates`, each with one {} for the class name.
        """
        params = params or {}
        images, own_classes = columns(model_input)
        templates = texts("params.templates", params.get("templates")) or self.templates
        for template in templates:
            if template.count("{}") != 1:
                refuse(f"params.templates: {template!r}: expected one {{}} where the class name goes")
        common = texts("params.classes", params.get("classes"))
        asked = [checked_classes(row, own or common) for row, own in enumerate(own_classes)]
        features = [self.features(images[start : start + BATCH], start) for start in range(0, len(images), BATCH)]
        rows = []
        for feature, classes in zip(torch.cat(features), asked, strict=True):
            logits = self.model.logit_scale.exp() * feature @ self.embedded(classes, tuple(templates)).T
            rows.append(dict(zip(classes, logits.softmax(-1).tolist(), strict=True)))
        return pd.DataFrame(rows)

    def features(self, images: Sequence[Any], first: int) -> torch.Tensor:
        """Unit embeddings, fp32 [n, D]."""
        pixels = torch.stack([self.pixels(image, f"image {first + row}") for row, image in enumerate(images)])
        with torch.no_grad():
            found: torch.Tensor = self.model.encode_image(pixels.to(self.device), normalize=True)
        return found.float()

    def pixels(self, image: Any, name: str) -> torch.Tensor:
        """What the encoder takes, fp32 [3, S, S]: resized, cropped and normalised as the checkpoint says."""
        opened = read_image(image, name)
        if isinstance(opened, Image.Image):
            ready: torch.Tensor = self.preprocess(opened)
            return ready
        for step in self.preprocess.transforms:  # the others turn a picture into a tensor, which it is already
            if isinstance(step, torch.nn.Module):
                opened = step(opened)
        return opened

    def _embedded(self, classes: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
        """Unit class embeddings, fp32 [K, D]: normalised means over the templates."""
        prompts = self.tokenizer([template.replace("{}", name) for name in classes for template in templates])
        with torch.no_grad():
            parts = [
                self.model.encode_text(part, normalize=True).float() for part in prompts.to(self.device).split(256)
            ]
        means = torch.cat(parts).view(len(classes), len(templates), -1).mean(1)
        return torch.nn.functional.normalize(means, dim=-1)


def refuse(message: str) -> None:
    """What the caller did wrong: HTTP 400 when served."""
    raise MlflowException.invalid_parameter_value(message)


def columns(model_input: Any) -> tuple[list[Any], list[tuple[str, ...] | None]]:
    """The images, and each one's own class names, or None."""
    if isinstance(model_input, pd.DataFrame):
        model_input = {str(name): list(model_input[name]) for name in model_input}
        if len(model_input) == 1 and "image" not in model_input:  # a list that MLflow made a table of
            model_input = {"image": next(iter(model_input.values()))}
    if isinstance(model_input, Mapping):
        model_input = unfolded(model_input)
        unknown = set(model_input) - {"image", "classes"}
        if unknown or "image" not in model_input:
            refuse(f"the input has {sorted(model_input)}; expected a column 'image' and optionally 'classes'")
        images, own = as_list(model_input["image"]), model_input.get("classes")
        own = [None] * len(images) if own is None else list(own)
        if len(own) != len(images):
            refuse(f"classes: {len(own)} lists for {len(images)} images")
        names = [None if missing(each) else texts(f"classes of image {n}", each) for n, each in enumerate(own)]
        return images, names
    images = as_list(model_input)
    return images, [None] * len(images)


def unfolded(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """MLflow makes one row of `{"image": [several images]}`: here they are rows again."""
    cells = table.get("image")
    if cells is None or isinstance(cells, bytes | str) or len(cells) != 1:
        return table
    only = cells[0]
    if isinstance(only, bytes | bytearray | str | Image.Image) or not hasattr(only, "__len__") or len(only) == 0:
        return table
    first = only[0]
    several = isinstance(first, bytes | bytearray | str | Image.Image) or np.ndim(first) == 3
    if not several:
        return table
    rows: dict[str, Any] = {**table, "image": list(only)}
    if table.get("classes") is not None and not missing(own := table["classes"][0]):
        listed = list(own)
        rows["classes"] = listed if listed and not isinstance(listed[0], str) else [listed] * len(only)
    return rows


def as_list(images: Any) -> list[Any]:
    """One image, or several, as a list."""
    if isinstance(images, bytes | bytearray | str | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.dtype != object and images.ndim in (2, 3):
        return [images]
    found = list(images)
    if not found:
        refuse("no image was given")
    return found


def missing(value: Any) -> bool:
    """Is this cell empty?"""
    return value is None or (isinstance(value, float) and np.isnan(value))


def texts(name: str, value: Any) -> tuple[str, ...] | None:
    """A list of texts; None if there is none."""
    if value is None or (not isinstance(value, str) and len(value) == 0):
        return None
    found = tuple(value) if not isinstance(value, str) else (value,)
    if not all(isinstance(each, str) for each in found):
        refuse(f"{name}: expected a list of texts, got {found!r}"[:300])
    return tuple(str(each) for each in found)


def checked_classes(row: int, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """At least two class names, all different."""
    if classes is None or len(classes) < 2:
        refuse(f"image {row}: give at least two class names, in params.classes or in a column 'classes'")
    assert classes is not None
    if len(set(classes)) < len(classes):
        refuse(f"image {row}: a class is named twice: {sorted({c for c in classes if classes.count(c) > 1})}")
    return classes


def read_image(image: Any, name: str) -> Image.Image | torch.Tensor:
    """A picture, or fp32 [3, H, W] in [0, 1] where floats were given, so that no digit of them is lost."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str):
        try:
            image = base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image, validate=True)
        except (binascii.Error, ValueError):
            refuse(f"{name}: a text that is not base64")
    if isinstance(image, bytes | bytearray):
        try:
            opened = Image.open(io.BytesIO(image))
            opened.load()
        except Exception as error:  # Pillow's decoders raise anything
            refuse(f"{name}: not a picture that can be read ({type(error).__name__}: {error})"[:300])
        return opened
    return from_array(image, name)


def from_array(image: Any, name: str) -> Image.Image | torch.Tensor:
    """An array of pixels, colours last or first, or grey."""
    try:
        pixels = np.array(image.tolist() if isinstance(image, np.ndarray) and image.dtype == object else image)
        pixels = pixels if pixels.dtype.kind in "uif" else pixels.astype(np.float64)
    except (TypeError, ValueError):
        refuse(f"{name}: neither bytes, base64 text nor an array of numbers, but {type(image).__name__}")
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    elif pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        refuse(f"{name}: an array of shape {pixels.shape}; expected [H, W, 3], [3, H, W] or [H, W]")
    whole, most = pixels.dtype.kind in "ui", 255 if pixels.dtype.kind in "ui" else 1
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= most):
        kind = "integers of 0..255" if whole else "floats of 0..1"
        refuse(f"{name}: expected {kind}, got values from {pixels.min():g} to {pixels.max():g}")
    if whole:
        return Image.fromarray(pixels.astype(np.uint8))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()


def fetch(uri: str, sha256: str) -> Path:
    """The object at `uri` in the local cache: kept bytes if they have this SHA-256, else downloaded and compared."""
    path = cache_folder() / "weights" / hashlib.sha256(sha256.encode()).hexdigest()[:32] / uri.rpartition("/")[2]
    if path.is_file() and file_hash(path) == sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / "part"
        with explained(uri):
            address = urlsplit(uri)
            s3_client().download_file(address.netloc, address.path.lstrip("/"), str(part))
        if (found := file_hash(part)) != sha256:
            raise MlflowException(f"{uri}: has SHA-256 {found}, expected {sha256}; these weights are not loaded")
        part.replace(path)
    return path


def check_signature(uri: str, weights: Path, config: bytes, key: Path) -> None:
    """Refuse a version that `key` has not signed as it lies in S3, or whose weights or configuration differ here."""
    try:
        from model_signing.hashing import Config as Hashing
        from model_signing.verifying import Config
    except ImportError as error:
        raise MlflowException("AGFT_PUBLIC_KEY asks for a signature, which needs model-signing") from error
    address, base = urlsplit(uri), uri.rpartition("/")[0]
    prefix = address.path.lstrip("/").rpartition("/")[0] + "/"
    with tempfile.TemporaryDirectory(prefix="agft-signed-") as scratch, explained(base):
        folder, client = Path(scratch), s3_client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=address.netloc, Prefix=prefix, Delimiter="/")
        for item in (item for page in pages for item in page.get("Contents", ())):
            name = item["Key"].removeprefix(prefix)
            if name == WEIGHTS:
                shutil.copyfile(weights, folder / name)  # those that are loaded
            elif name != "reserved.json":
                client.download_file(address.netloc, item["Key"], str(folder / name))
        if not (folder / SIGNATURE).is_file():
            raise MlflowException(f"{base}: is not signed, and AGFT_PUBLIC_KEY asks for a signature; it is not served")
        hashing = Hashing().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
        try:
            signed = Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(hashing)
            signed.verify(folder, folder / SIGNATURE)
            own = json.loads((folder / "manifest.json").read_bytes())["weights"]["uri"]
            if own != uri or json.loads((folder / CONFIG).read_bytes()) != json.loads(config):
                raise ValueError("what was signed is another version, or has another configuration")
        except Exception as error:  # a bundle that somebody changed can raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise MlflowException(f"{base}: its signature does not hold with {key}: {reason}; not served") from error


def s3_client() -> Any:
    """Of the services in the environment."""
    import boto3

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return boto3.Session().client("s3", endpoint_url=endpoint)  # the default session would keep old keys


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """What boto3 raises about `uri`, as one sentence."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise MlflowException(
            f"{uri}: the weights cannot be fetched ({error}); AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY say where S3 is and who asks"
        ) from error


def file_hash(path: Path) -> str:
    """SHA-256, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """`$AGFT_CACHE`, else `agft-study` in the user's cache folder."""
    named = os.environ.get("AGFT_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agft-study"


mlflow.models.set_model(RobustClassifier())
