"""A prepared set: uint8 images in a few .npy files, their SHA-256s, labels, and a manifest that is written last.

<prepared>/<name>/
    images-00000.npy ...   uint8 [n, 3, H, W]; all but the last hold `images_per_shard`
    labels.npy             int64 [N]
    digests.npy            uint8 [N, 32]: SHA-256 of every image's pixels
    manifest.json          what it is, and the SHA-256 of every other file
"""

from __future__ import annotations

import io
import json
import math
import os
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trainers.data.base import DatasetEntry
from trainers.data.prepared.decode import TRANSFORMS
from trainers.errors import UserError
from trainers.files import hash_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


FORMAT = 1  # of the files and of what is in them: raise it when either changes
MANIFEST, LABELS, DIGESTS = "manifest.json", "labels.npy", "digests.npy"
SMALLEST_BYTES, LARGEST_BYTES, SHARDS = 16 << 20, 1 << 30, 32


@dataclass(frozen=True)
class Shard:
    file: str
    images: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a prepared set says about itself."""

    format: int
    name: str
    split: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    names: str  # the rule that made the class names
    duplicate_prompts: tuple[tuple[int, ...], ...]  # classes that cannot be told apart
    transform: str
    shape: tuple[int, int, int, int]  # [N, 3, H, W]
    images_per_shard: int
    shards: tuple[Shard, ...]
    labels_sha256: str
    digests_sha256: str
    source: dict[str, Any]  # what it was made from: a hash over names, sizes and labels of the files; files' SHA-256s
    made_with: dict[str, str]

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def files(self) -> dict[str, str]:
        """SHA-256 of every file but the manifest."""
        shards = {shard.file: shard.sha256 for shard in self.shards}
        return {**shards, LABELS: self.labels_sha256, DIGESTS: self.digests_sha256}


def shard_size(num_images: int, image_bytes: int) -> int:
    """Images a file: a set has 32 files, or as many as keep a file between 16 MiB and 1 GiB.

    Few, since every mapped file is an open one, and a process may have 1024; enough for as many cores.
    """
    wanted = min(max(num_images * image_bytes // SHARDS, SMALLEST_BYTES), LARGEST_BYTES)
    return max(1, wanted // image_bytes)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file; None if there is none. `UserError` if it is not one."""
    try:
        fields = json.loads(path.read_text())
        shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
        for name in ("classes", "templates", "shape"):
            fields[name] = tuple(fields[name])
        groups = tuple(tuple(group) for group in fields.pop("duplicate_prompts"))
        return Manifest(**fields, shards=shards, duplicate_prompts=groups)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the manifest of a prepared dataset ({type(error).__name__}: {error})") from error


def differences(manifest: Manifest, entry: DatasetEntry) -> list[str]:
    """What the manifest says and the table does not: made by another version, or of something else."""
    wanted = {
        "format": FORMAT,
        "name": entry.name,
        "split": entry.split,
        "templates": entry.templates,
        "transform": TRANSFORMS[entry.resolution],
        "number of images": entry.num_images,
        "number of classes": entry.num_classes,
    }
    found = {
        **vars(manifest),
        "number of images": manifest.shape[0],
        "number of classes": len(manifest.classes),
    }
    listed = sum(shard.images for shard in manifest.shards)
    short = [f"its files hold {listed} images, not {manifest.shape[0]}"] if listed != manifest.shape[0] else []
    return [f"{key} is {found[key]!r}, not {value!r}" for key, value in wanted.items() if found[key] != value] + short


def faults(folder: Path, entry: DatasetEntry, *, progress: Callable[[int], None] | None = None) -> list[str]:
    """Everything wrong with a prepared set, every byte of it read; nothing, if it is good."""
    import numpy as np

    manifest = read_manifest(folder / MANIFEST)
    if manifest is None:
        return [f"{folder / MANIFEST}: not there; {entry.name} is not prepared"]
    found = [f"{folder / MANIFEST}: {difference}" for difference in differences(manifest, entry)]
    for file, sha256 in manifest.files().items():
        path = folder / file
        if not path.is_file():
            found.append(f"{path}: not there")
            continue
        digest = hash_file(path)
        if digest != sha256:
            found.append(f"{path}: its SHA-256 is {digest}, not {sha256}")
        if progress is not None:
            progress(next((shard.images for shard in manifest.shards if shard.file == file), 0))
    if not found:
        labels = np.load(folder / LABELS)
        if labels.min() < 0 or labels.max() >= len(manifest.classes):
            found.append(f"{folder / LABELS}: labels from {labels.min()} to {labels.max()}, "
                         f"for {len(manifest.classes)} classes")  # fmt: skip
    return found


def npy_header(shape: tuple[int, ...]) -> bytes:
    """How a .npy file of uint8 values in C order begins."""
    from numpy.lib.format import write_array_header_1_0

    content = io.BytesIO()
    write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return content.getvalue()


READERS = 8  # threads that read one batch: a disk serves requests side by side, and page faults come one by one


class ShardedImages:
    """The images of a prepared set as `ImageSet` wants them; what is not asked for is not read.

    `bring(file)` gives the path of one of the set's files on this machine. Rows are read into new memory, or into what
    the caller has for them (`read_into`), so that the page cache is all the memory that it takes.
    """

    def __init__(self, manifest: Manifest, bring: Callable[[str], Path]) -> None:
        self.shape: tuple[int, ...] = manifest.shape
        self._manifest, self._bring = manifest, bring
        self._file = lru_cache(maxsize=None)(self._open)  # 180 files for ImageNet's 193 GB
        self._readers: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> Tensor:
        """One image for a number; a new tensor of rows for a slice, or an int64 (or bool) tensor of any length."""
        import numpy as np
        import torch

        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
        else:
            given = np.asarray(index)
            rows = np.flatnonzero(given) if given.dtype == np.bool_ else given.astype(np.int64)
        if rows.size and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(f"{self._manifest.name} has {len(self)} images; asked for {rows.min()} to {rows.max()}")
        flat = rows.reshape(-1) % max(1, len(self))
        found = np.empty((len(flat), *self.shape[1:]), np.uint8)
        self.read_into(flat, found)
        return torch.from_numpy(found.reshape(*rows.shape, *self.shape[1:]))

    def read_into(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """The images `rows` [n], each in [0, N), into `out` [n, 3, H, W], by several threads side by side.

        Files that are read for the first time are brought here side by side, too.
        """
        import numpy as np

        if len(rows) == 1:
            self._read(rows, out, [0])
            return
        if self._readers is None:
            self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="images")
        numbers = np.unique(rows // self._manifest.images_per_shard).tolist()
        parts = np.array_split(np.argsort(rows, kind="stable"), READERS)
        for work, items in ((self._file, numbers), (partial(self._read, rows, out), [p.tolist() for p in parts])):
            for _ in self._readers.map(work, items):
                pass

    def _read(self, rows: NDArray[np.int64], out: NDArray[np.uint8], places: list[int]) -> None:
        for place in places:
            number, offset = divmod(int(rows[place]), self._manifest.images_per_shard)
            file, start = self._file(number)
            image = memoryview(out[place]).cast("B")
            if os.preadv(file.fileno(), [image], start + offset * image.nbytes) != image.nbytes:
                raise UserError(f"{file.name}: it was cut off; see {self._verify()}")

    def _verify(self) -> str:
        return f"`agft data verify {shlex.quote(self._manifest.name)}`"

    def _open(self, number: int) -> tuple[BinaryIO, int]:
        """A shard's open file, and where its first image begins.

        Several threads come here at once, so the header is compared and not parsed: NumPy parses it with `ast`, whose
        depth counter threads share before Python 3.11.8 (python/cpython#106905), and they get a `SystemError`.
        """
        shard = self._manifest.shards[number]
        path = self._bring(shard.file)
        wanted = (shard.images, *self.shape[1:])
        header = npy_header(wanted)
        try:
            file = path.open("rb")
            start, size = file.read(len(header)), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); see {self._verify()}") from error
        if start != header or size != len(header) + math.prod(wanted):
            file.close()
            rule = f"cannot be read as the uint8 {wanted} of its manifest ({size:,} bytes)"
            raise UserError(f"{path}: {rule}; see {self._verify()}")
        return file, len(header)

    def __reduce__(self) -> Any:
        return ShardedImages, (self._manifest, self._bring)
