"""Get a dataset's own files: through torchvision where that works without a login, else say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainers.data.base import DatasetEntry
from trainers.errors import UserError
from trainers.filelock import locked

__all__ = ["download", "how_to_get", "split_of"]

IMAGENET_ARCHIVES = {
    "imagenet": ("val", "ILSVRC2012_img_val.tar"),
    "imagenet-train": ("train", "ILSVRC2012_img_train.tar"),
}

Say = Callable[[str], None]


def how_to_get(entry: DatasetEntry, root: Path) -> str:
    """What to do to have a dataset's files, line by line."""
    assert entry.files is not None
    if entry.files.download:
        return f"agft data prepare {entry.name} --download"
    return "\n".join(f"  {line.format(root=root)}" for line in entry.files.by_hand)


def download(entry: DatasetEntry, root: Path, *, say: Say) -> None:
    """Have torchvision fetch and unpack the files (it checks MD5s); one process at a time.

    What is there already is left alone. An interrupted archive is fetched anew, a finished one only unpacked again.
    """
    assert entry.files is not None
    if (root / entry.files.marker).exists():
        return
    name = entry.name
    with locked(root / f".{name}.download.lock", waiting=lambda: say(f"another process downloads {name}; waiting")):
        if (root / entry.files.marker).exists():
            return
        if not entry.files.download:
            if name in IMAGENET_ARCHIVES and (root / "imagenet" / IMAGENET_ARCHIVES[name][1]).is_file():
                say(f"{name}: unpacking; this takes a while ...")
                _torchvision(name, "ImageNet", {"root": root / "imagenet", "split": IMAGENET_ARCHIVES[name][0]})
                return
            raise UserError(f"{name}: cannot be downloaded without you:\n{how_to_get(entry, root)}")
        say(f"{name}: downloading to {root} ...")
        _torchvision(name, entry.files.download, {"root": root, "download": True, **split_of(entry)})


def split_of(entry: DatasetEntry) -> dict[str, Any]:
    """How torchvision's class is told which split."""
    assert entry.files is not None
    if not entry.files.split:
        return {}
    return {"train": False} if entry.files.download.startswith("CIFAR") else {"split": entry.files.split}


def _torchvision(name: str, kind: str, settings: dict[str, Any]) -> None:
    from torchvision import datasets

    settings["root"].mkdir(parents=True, exist_ok=True)
    try:
        getattr(datasets, kind)(**{**settings, "root": str(settings["root"])})
    except (OSError, RuntimeError, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{name}: torchvision could not get it ({reason}). Offline? Fetch it elsewhere, put its files into "
            f"{settings['root']} as torchvision.datasets.{kind} lays them out, then: agft data prepare {name}"
        ) from error
