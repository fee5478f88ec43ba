"""Image folders as datasets, `folder:DIRECTORY`: one sub-folder a class, as torchvision's ImageFolder has it."""

from __future__ import annotations

from pathlib import Path

from trainers.data.base import DatasetEntry, Files, RawSet
from trainers.data.layouts import images_in_folders
from trainers.errors import UserError

FOLDER_PREFIX = "folder:"
TEMPLATE = "This is a photo of a {}."


def folder_entry(name: str, path: str) -> DatasetEntry:
    """A row like those of the table, with the counts of what is in the folder now; `path` is named in the error.

    Classes are the sub-folders in alphabetical order, `_` and `-` read as spaces. Pixels are made as those of the
    table's sets are, so that a folder of a set's own images gives that set.
    """
    directory = Path(name.removeprefix(FOLDER_PREFIX)).expanduser().absolute()
    if not directory.is_dir():
        raise UserError(f"{path}: {name!r}: no such folder")
    folders, files, labels = images_in_folders(directory)
    if len(folders) < 2 or not files:
        raise UserError(f"{path}: {name!r}: expected one sub-folder with images for each of two or more classes")
    classes = tuple(folder.replace("_", " ").replace("-", " ") for folder in folders)
    return DatasetEntry(
        name,
        None,
        len(files),
        len(classes),
        f"the folder {directory}",
        "images of your own",
        names="names of sub-folders, `_` and `-` read as spaces",
        templates=(TEMPLATE,),
        resolution="224",
        files=Files(lambda _: RawSet(files, labels, classes, named_by="names of sub-folders"), str(directory), 224),
    )
