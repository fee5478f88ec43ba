"""Datasets that come as arrays of pixels: CIFAR's pickles, STL10's binaries, PCAM's HDF5."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from trainers.data.base import RawSet
from trainers.data.names import NAMED_HERE, PCAM, refine
from trainers.errors import UserError


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
    if "data" not in content:
        raise UserError(f"{path}: not a CIFAR file (it has no 'data')")
    for key, kind, where, held in ((labels, int, path, content), (names, str, named, description)):
        found = held.get(key)
        if not isinstance(found, list) or not all(isinstance(each, kind) for each in found):
            raise UserError(f"{where}: not a CIFAR file (it has no list {key!r} of {kind.__name__})")
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
    size = path.stat().st_size
    if size == 0 or size % (3 * 96 * 96):
        raise UserError(f"{path}: {size:,} bytes are no whole number of 96 x 96 images")
    pixels = np.memmap(path, np.uint8, mode="r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    labels = (np.fromfile(labelled, np.uint8).astype(np.int64) - 1).tolist()
    names = tuple(named.read_bytes().decode("latin1").split())
    return RawSet(pixels, labels, names, (path, labelled, named))


class _HDF5:
    """Pixels in an HDF5 file, read when they are asked for; a file that is damaged inside is named."""

    def __init__(self, path: Path, pixels: Any) -> None:
        self.path, self.pixels = path, pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.pixels[index]
        except OSError as error:
            raise UserError(f"{self.path}: images {index} cannot be read ({error})") from error


def pcam(root: Path) -> RawSet:
    try:
        import h5py
    except ImportError as error:
        raise UserError("its files are HDF5, and h5py is not installed: pip install 'h5py>=3.11'") from error
    path, labelled = (root / f"pcam/camelyonpatch_level_2_split_test_{part}.h5" for part in "xy")
    for each in (path, labelled):
        each.stat()  # an OSError with the path
    try:
        pixels = h5py.File(path)["x"]
        if pixels.dtype != "uint8" or pixels.shape[1:] != (96, 96, 3):
            raise UserError(f"{path}: its x is {pixels.dtype} {pixels.shape}, not uint8 (N, 96, 96, 3)")
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: not PCAM's HDF5 file ({error})") from error
    try:
        with h5py.File(labelled) as file:
            labels = file["y"][...].reshape(-1).tolist()
    except (OSError, KeyError) as error:
        raise UserError(f"{labelled}: not PCAM's HDF5 file ({error})") from error
    return RawSet(_HDF5(path, pixels), labels, PCAM, (path, labelled), NAMED_HERE)
