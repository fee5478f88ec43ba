"""The bundled tiny CLIP: an ordinary open_clip model trained on drawn images, so that studies run on a bare machine."""

from __future__ import annotations

from pathlib import Path

ARCH = "tiny-clip"

FOLDER = Path(__file__).parents[1] / "tiny"


def register() -> None:
    """Tell open_clip the architecture `tiny-clip`; calling it again changes nothing."""
    import open_clip

    if ARCH not in open_clip.list_models():
        open_clip.add_model_config(FOLDER / f"{ARCH}.json")


def weights_path() -> Path:
    """The shipped weights, for `open_clip.create_model(ARCH, pretrained=str(weights_path()))`."""
    return FOLDER / f"{ARCH}.safetensors"
