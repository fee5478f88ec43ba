"""Image folders as datasets, `folder:DIRECTORY`: one sub-folder a class, as torchvision's ImageFolder has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trainers.data.base import DatasetEntry, Files, RawSet, alike
from trainers.data.pictures import Look, counted, listed, look
from trainers.errors import UserError

FOLDER_PREFIX = "folder:"
TEMPLATE = "This is a photo of a {}."
FEW = 10  # pictures of a class
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"])


def folder_entry(name: str, path: str) -> DatasetEntry:
    """A row like those of the table, with the counts of what is in the folder now; `path` is named in the error.

    Classes are the sub-folders in alphabetical order, `_` and `-` read as spaces. Pixels are made as those of the
    table's sets are, so that a folder of a set's own images gives that set. All that is wrong is told at once; what a
    user should know though nothing is wrong is in `remarks`.
    """
    given = name.removeprefix(FOLDER_PREFIX)
    directory = Path(given).expanduser().absolute()
    if not given or not directory.is_dir():
        raise UserError(f"{path}: {name!r}: no such folder")
    try:
        found = look(directory)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: {name!r}: {error.filename or directory}: {reason}") from error
    if problems := list(_problems(name, found)):
        raise UserError(f"{path}: {name!r}: {listed(problems, 'things are wrong')}")
    classes = tuple(map(_class_name, found.classes))
    return DatasetEntry(
        name,
        None,
        len(found.files),
        len(classes),
        f"the folder {directory}",
        "images of your own",
        names="names of sub-folders, `_` and `-` read as spaces",
        templates=(TEMPLATE,),
        resolution="224",
        files=Files(
            lambda _: RawSet(found.files, found.labels, classes, named_by="names of sub-folders"), str(directory), 224
        ),
        remarks=tuple(_remarks(found, classes)),
    )


def _class_name(folder: str) -> str:
    return folder.replace("_", " ").replace("-", " ")


def _problems(name: str, found: Look) -> Iterator[str]:
    if len(found.classes) < 2 or not (found.files or found.bad):
        out = f" (left out: {counted(found.left_out)})" if found.left_out else ""
        yield f"expected one sub-folder with images for each of two or more classes{out}"
        return
    splits = [each for each in found.classes if each.casefold() in SPLITS]
    if len(splits) > 1 and set(splits) <= found.nested:
        also = ", ".join(f"{name.rstrip('/')}/{each}" for each in splits)
        yield f"its sub-folders {', '.join(splits)} are splits of a dataset, not classes; name one: {also}"
        return
    if found.empty:
        out = f"; left out: {counted(found.left_out)}" if found.left_out else ""
        yield (f"{len(found.empty):,} of {len(found.classes):,} sub-folders hold no picture: "
               f"{_some(found.empty)}; fill or remove them{out}")  # fmt: skip
    for each in found.classes:
        if not _class_name(each).strip() or not each.isprintable():
            yield f"the sub-folder {each!r} is no name of a class: it must be text that can be printed"
    yield from found.bad


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")


def _remarks(found: Look, classes: tuple[str, ...]) -> Iterator[str]:
    out = f"; left out: {counted(found.left_out)}" if found.left_out else ""
    yield f"{len(found.files):,} pictures of {len(classes):,} classes taken{out}"
    yield from same_prompts(tuple(map(repr, found.classes)), alike(classes, (TEMPLATE,)))
    counts = Counter(found.labels)
    if few := [each for label, each in enumerate(found.classes) if counts[label] < FEW]:
        smallest = min(counts.values())
        yield (f"{len(few):,} of {len(classes):,} classes have fewer than {FEW} pictures (the smallest {smallest}): "
               f"{_some(few)}")  # fmt: skip


def same_prompts(names: tuple[str, ...], groups: list[tuple[int, ...]]) -> Iterator[str]:
    """What `alike` found, in a line."""
    if groups:
        shown = [" = ".join(names[label] for label in group) for group in groups[:5]]
        more = f"; and {len(groups) - 5:,} more" if len(groups) > 5 else ""
        yield (f"{sum(map(len, groups)):,} classes cannot be told apart, their prompts are equal: "
               f"{'; '.join(shown)}{more}")  # fmt: skip
