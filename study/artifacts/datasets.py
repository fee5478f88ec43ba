"""What `agft data list`, `prepare` and `verify` do, and whether a study's datasets can be loaded here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from infra import storage
from study.artifacts.sources import fetch_data
from study.console import Say, say
from study.errors import StudyFailed, UserError
from study.session import storage_here
from study.spec.config import StudyConfig
from trainers.data import DATASETS, ZERO_SHOT_15, DatasetEntry, dataset_entry, safe_name
from trainers.data.fetch.web import Unreachable
from trainers.data.prepared.shards import MANIFEST, differences, read_manifest
from trainers.data.progress import Progress, bytes_done
from trainers.data.stored import data_root, is_remote, prepared_place, set_at, state

S3 = "s3://"
GROUPS = ("paper", "other", "drawn")  # of the papers' tables, read from files as well, drawn here
STATES = {"drawn": "built in", "prepared": "prepared", "raw": "files here", "missing": "missing"}


def reach_storage(to: str | None, home: Path, *, start: bool = True) -> None:
    """Where prepared sets are in S3, point this process at it; `start`: False for what only reads."""
    if (to or prepared_place()).startswith(S3):
        storage_here(home, say, start=start)


def named_sets(spec: StudyConfig) -> dict[str, str]:
    """Every dataset of a study by its path in the file."""
    return {
        f"data.{role}" if role == "train" else f"data.{role}.{index}": name
        for role, members in spec.data_sets().items()
        for index, name in enumerate(members)
    }


def list_datasets() -> list[dict[str, Any]]:
    """Every dataset, as JSON values: those of the papers' tables, others that are read from files, those drawn here."""
    place = prepared_place()
    remote: set[str] = set()
    if place.startswith(S3):
        remote = prepared_in_s3(place)
    return [
        {
            "name": entry.name,
            "group": _group(entry),
            "split": entry.split,
            "images": entry.num_images,
            "classes": entry.num_classes,
            "held_out": list(entry.held_out),
            "state": "prepared" if safe_name(entry.name) in remote else STATES[state(entry)],
            "kind": entry.kind,
            "prepared_bytes": None if entry.files is None else entry.num_images * 3 * entry.files.size**2,
            "resolution": entry.resolution,
            "templates": list(entry.templates),
            "class_names": entry.names,
            "source": entry.source,
            "description": entry.description,
        }
        for entry in sorted(DATASETS.values(), key=lambda entry: GROUPS.index(_group(entry)))
    ]


def _group(entry: DatasetEntry) -> str:
    return "paper" if entry.name in ZERO_SHOT_15 else "drawn" if entry.files is None else "other"


def _entries(names: Sequence[str]) -> list[DatasetEntry]:
    entries = [dataset_entry(name, "NAME") for name in names]
    for entry in entries:
        if entry.files is None:
            raise UserError(f"{entry.name}: is drawn when it is used; there is nothing to prepare")
    return entries


def prepare_datasets(
    names: Sequence[str], *, to: str | None, fetching: bool, workers: int | None, tell: Callable[[str], None]
) -> dict[str, str]:
    """Prepare sets one after the other; what is done already is left alone. Where each is, by name."""
    root, place = data_root(), (to or prepared_place()).rstrip("/")
    if is_remote(place) and not place.startswith(S3):
        raise UserError(f"{'--to' if to else 'AGFT_PREPARED'}: {place}: neither a folder nor an s3:// address")
    here = root / "prepared" if is_remote(place) else Path(place).expanduser()
    entries = _entries(names)
    _refuse_what_cannot_be_had(entries, root, here, fetching=fetching)
    for entry in entries:
        try:
            _prepare_one(entry, root, here, place, fetching=fetching, workers=workers)
        except KeyboardInterrupt:
            raise StudyFailed(
                f"{entry.name}: interrupted; what is finished is kept, the same command goes on"
            ) from None
        except Unreachable as error:
            raise StudyFailed(str(error)) from error
        except OSError as error:
            raise StudyFailed(f"{entry.name}: {error.filename or here}: {error.strerror or error}; what is finished is "
                              "kept, the same command goes on") from error  # fmt: skip
        tell(f"{entry.name}: ready in {set_at(place, entry)}")
    if place != prepared_place():
        tell(f"to use them there: export AGFT_PREPARED={place}")
    return {entry.name: str(set_at(place, entry)) for entry in entries}


def _is_prepared(entry: DatasetEntry, here: Path) -> bool:
    return Path(set_at(here, entry), "manifest.json").is_file()


def _refuse_what_cannot_be_had(entries: Sequence[DatasetEntry], root: Path, here: Path, *, fetching: bool) -> None:
    """All that is missing at once, and before hours are spent on what is not."""
    from trainers.data.fetch.download import can_download, how_to_get

    missing = [
        f"{entry.name}: {root / entry.files.marker}: not there. To get it:\n{how_to_get(entry, root)}"
        for entry in entries
        if entry.files is not None
        and not (root / entry.files.marker).exists()
        and not _is_prepared(entry, here)
        and not (fetching and can_download(entry, root))
    ]
    if missing:
        raise UserError("\n".join(missing))


def _prepare_one(
    entry: DatasetEntry, root: Path, here: Path, place: str, *, fetching: bool, workers: int | None
) -> None:
    from trainers.data.fetch.download import download
    from trainers.data.prepared.prepare import prepare

    if fetching and not _is_prepared(entry, here):
        download(entry, root, say=say)
    manifest = prepare(entry, root, here, workers=workers, say=say)
    if is_remote(place):
        upload(Path(set_at(here, entry)), set_at(place, entry), manifest.files(), say=say)


def verify_datasets(names: Sequence[str]) -> list[str]:
    """What is wrong with prepared sets, every byte read (in S3: what storage says of every object)."""
    place, found = prepared_place(), []
    for entry in _entries(names):
        wrong = _faults(place, entry)
        found += wrong
        if not wrong:
            click.echo(f"{entry.name}: {entry.num_images:,} images, {entry.num_classes} classes, as they should be")
    return found


def _faults(place: str, entry: DatasetEntry) -> list[str]:
    if place.startswith(S3):
        return faults_in_s3(set_at(place, entry), entry)
    from trainers.data.prepared.shards import faults
    from trainers.data.progress import Progress

    progress = Progress(entry.name, entry.num_images, say)

    def at(images: int) -> None:
        progress(progress.done + images)

    return faults(Path(set_at(place, entry)), entry, progress=at)


# Prepared datasets in S3: what is there, sending one, and whether it is as it should be.


def prepared_in_s3(place: str) -> set[str]:
    """Names of the folders below `place` that hold a manifest."""
    keys = [stored.uri.removeprefix(f"{place}/") for stored in storage.list_objects(place)]
    return {key.partition("/")[0] for key in keys if key.endswith(f"/{MANIFEST}")}


def upload(folder: Path, address: str, files: Mapping[str, str], *, say: Say) -> None:
    """Send a prepared set; files that are there with the same SHA-256 are not sent again.

    The manifest comes last. One that is there and says something else goes first: never is there a manifest beside
    files that are not its own.
    """
    manifest = folder / MANIFEST
    there = storage.head(f"{address}/{MANIFEST}")
    if there is not None and there.sha256 != storage.hash_file(manifest):
        storage.delete(f"{address}/{MANIFEST}")
        there = None
    sizes = {file: (folder / file).stat().st_size for file in files}
    sent, kept, progress = 0, 0, Progress(address, sum(sizes.values()), say, bytes_done)
    for file, sha256 in files.items():
        stored = storage.head(f"{address}/{file}")
        if stored is None or stored.sha256 != sha256:
            storage.put_file(folder / file, f"{address}/{file}", sha256=sha256)
        else:
            kept += sizes[file]
        sent += sizes[file]
        progress(sent, kept)
    if there is None:
        storage.put_file(manifest, f"{address}/{MANIFEST}")


def faults_in_s3(address: str, entry: DatasetEntry) -> list[str]:
    """What is wrong with a prepared set, by what storage says of every object."""
    with tempfile.TemporaryDirectory(prefix="agft-verify-") as folder:
        if not fetch_data(f"{address}/{MANIFEST}", Path(folder) / MANIFEST, None):
            return [f"{address}/{MANIFEST}: not there; {entry.name} is not prepared"]
        manifest = read_manifest(Path(folder) / MANIFEST)
    assert manifest is not None
    found = [f"{address}/{MANIFEST}: {difference}" for difference in differences(manifest, entry)]
    for file, sha256 in manifest.files().items():
        there = storage.head(f"{address}/{file}")
        if there is None:
            found.append(f"{address}/{file}: not there")
        elif there.sha256 != sha256:
            found.append(f"{address}/{file}: its SHA-256 is {there.sha256}, not {sha256}")
    return found
