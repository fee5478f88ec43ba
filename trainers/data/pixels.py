"""Datasets that come as arrays of pixels: CIFAR's pickles, STL10's binaries, PCAM's HDF5."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from trainers.data.base import RawSet
from trainers.data.names import NAMED_HERE, PCAM, refine
from trainers.errors import UserError

__all__ = ["cifar", "pcam", "stl10"]


class _ArraysOnly(pickle.Unpickler):
    """CIFAR's files hold plain containers and one numpy array; a file that names anything else is refused, unrun."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        parts = {
            "_reconstruct": np.empty(0).__reduce__()[0],
            "ndarray": np.ndarray,
            "dtype": np.dtype,
            "encode": _latin1,
        }
        if module.partition(".")[0] in ("numpy", "_codecs") and name in parts:
            return parts[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file does")


def _latin1(text: str, encoding: str) -> bytes:
    """How newer pickles write bytes."""
    return text.encode(encoding)


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = _ArraysOnly(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path}: not a CIFAR file ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a CIFAR file (it holds a {type(found).__name__})")
    return found


def cifar(root: Path, folder: str, batch: str, meta: str, labels: str, names: str) -> RawSet:
    """A test batch of CIFAR10 or CIFAR100: rows of 3072 bytes, planes of red, green, blue."""
    import numpy as np

    path, named = root / folder / batch, root / folder / meta
    content, description = _unpickled(path), _unpickled(named)
    for key, where, held in (("data", path, content), (labels, path, content), (names, named, description)):
        if key not in held:
            raise UserError(f"{where}: not a CIFAR file (it has no {key!r})")
    rows = np.asarray(content["data"])
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise UserError(f"{path}: its data is {rows.dtype} {rows.shape}, not uint8 (N, 3072)")
    pixels = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return RawSet(pixels, list(content[labels]), tuple(map(refine, description[names])), (path, named))


def stl10(root: Path) -> RawSet:
    """Planes of red, green, blue, each column by column; labels from 1."""
    import numpy as np

    base = root / "stl10_binary"
    path, labelled, named = base / "test_X.bin", base / "test_y.bin", base / "class_names.txt"
    if path.stat().st_size % (3 * 96 * 96):
        raise UserError(f"{path}: {path.stat().st_size} bytes are no whole number of 96 x 96 images")
    pixels = np.memmap(path, np.uint8, mode="r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    labels = (np.fromfile(labelled, np.uint8).astype(np.int64) - 1).tolist()
    return RawSet(pixels, labels, tuple(named.read_text().split()), (path, labelled, named))


def pcam(root: Path) -> RawSet:
    try:
        import h5py
    except ImportError as error:
        raise UserError("its files are HDF5, and h5py is not installed: pip install 'h5py>=3.11'") from error
    base = root / "pcam"
    path, labelled = (base / f"camelyonpatch_level_2_split_test_{part}.h5" for part in "xy")
    for each in (path, labelled):
        each.stat()  # an OSError with the path
    try:
        pixels, labels = h5py.File(path)["x"], h5py.File(labelled)["y"][:].reshape(-1).tolist()
    except (OSError, KeyError) as error:
        raise UserError(f"{base}: not PCAM's HDF5 files ({error})") from error
    return RawSet(pixels, labels, PCAM, (path, labelled), NAMED_HERE)
