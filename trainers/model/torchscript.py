"""The tensors of a TorchScript archive (OpenAI's own downloads), without its code.

Such a file is a zip with the program in `code/` and the modules' attributes in `data.pkl`, where every module is an
object of a class that the program defines. Here the classes are replaced by one that keeps attributes and does nothing;
nothing but tensors, numbers, lists and dictionaries can be made of the pickle, and no entry of `code/` is looked at.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Module:
    """A module of the program: its attributes."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), int(offset))  # bounds are checked: RuntimeError


def _parameter(value: Tensor, *_: object) -> Tensor:
    return value


def _plain(value: Any, *_: object) -> Any:
    return value


ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch.jit._pickle", f"build_{kind}list"): _plain for kind in ("int", "double", "bool", "tensor")},
    ("torch.jit._pickle", "restore_type_tag"): _plain,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(archive.open(f"{folder}data.pkl"))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Only what is in ALLOWED, and nothing of Python's."""
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not read")

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, as a flat tensor."""
        _, kind, key, _, count = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=DTYPES[kind], count=int(count)) if content else (
                torch.empty(0, dtype=DTYPES[kind])
            )  # fmt: skip
        return self.storages[key]


def _folder(archive: zipfile.ZipFile) -> str:
    """Where `data.pkl` is, with a closing slash."""
    return next(name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl"))


def is_archive(path: Path) -> bool:
    """Does the zip at `path` hold a program besides tensors?"""
    with zipfile.ZipFile(path) as archive:
        folder = _folder(archive)
        return any(name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in archive.namelist())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by their dotted names in the module, as its `state_dict` has them."""
    with zipfile.ZipFile(path) as archive:
        root = _Unpickler(archive, _folder(archive)).load()
    return dict(_named(root, ""))


def _named(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items() if isinstance(module, _Module) else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _named(value, f"{prefix}{name}.")
