"""What `agft data list`, `prepare` and `verify` do; and prepared datasets in S3."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from study.config import StudyConfig
from study.errors import StudyFailed, UserError
from trainers.data import DATASETS, DatasetEntry, not_ready
from trainers.data.stored import data_root, is_remote, prepared_place, state
from trainers.errors import lookup

__all__ = ["check_ready", "list_datasets", "prepare_datasets", "reach_storage", "verify_datasets"]

S3 = "s3://"


def say(text: str) -> None:
    """Progress and remarks; results alone go to standard output."""
    click.echo(text, err=True)


def reach_storage(to: str | None, home: Path) -> None:
    """Where prepared sets are in S3, point this process at it."""
    if (to or prepared_place()).startswith(S3):
        from study.sources import storage_here  # brings in boto3, which listing does without

        storage_here(home, say)


def check_ready(spec: StudyConfig) -> None:
    """Refuse a study whose datasets cannot be loaded here; on another cluster, its first task says the same."""
    if os.environ.get("RAY_ADDRESS"):
        return
    names = {
        f"data.{role}" if role == "train" else f"data.{role}.{index}": name
        for role, members in spec.data_sets().items()
        for index, name in enumerate(members)
    }
    if problems := not_ready(names):
        raise UserError("\n".join(problems))


def _entries(names: Sequence[str]) -> list[DatasetEntry]:
    entries = [lookup(DATASETS, name, path="NAME") for name in names]
    for entry in entries:
        if entry.files is None:
            raise UserError(f"{entry.name}: is drawn when it is used; there is nothing to prepare")
    return entries


def list_datasets() -> list[dict[str, Any]]:
    """Every dataset, as JSON values."""
    return [
        {
            "name": entry.name,
            "split": entry.split,
            "images": entry.num_images,
            "classes": entry.num_classes,
            "state": _state(entry),
            "kind": entry.kind,
            "resolution": entry.resolution,
            "templates": list(entry.templates),
            "class_names": entry.names,
            "source": entry.source,
            "description": entry.description,
        }
        for entry in DATASETS.values()
    ]


def _state(entry: DatasetEntry) -> str:
    words = {"drawn": "built in", "raw": "raw present"}
    found = state(entry)
    return words.get(found, found)


def prepare_datasets(names: Sequence[str], *, to: str | None, fetching: bool, workers: int | None) -> None:
    """Prepare sets one after the other; what is done already is left alone."""
    from trainers.data.download import download, how_to_get
    from trainers.data.prepare import prepare

    root, place = data_root(), to.rstrip("/") if to else prepared_place()
    if is_remote(place) and not place.startswith(S3):
        raise UserError(f"--to: {place}: a folder or an s3:// address")
    here = root / "prepared" if is_remote(place) else Path(place).expanduser()
    for entry in _entries(names):
        assert entry.files is not None
        try:
            if fetching and not (here / entry.name / "manifest.json").is_file():
                download(entry, root, say=say)
            elif state(entry) == "missing" and not (here / entry.name / "manifest.json").is_file():
                raise UserError(f"{entry.name}: {root / entry.files.marker}: not there. To get it:\n"
                                f"{how_to_get(entry, root)}")  # fmt: skip
            manifest = prepare(entry, root, here, workers=workers, say=say)
        except KeyboardInterrupt:
            raise StudyFailed(
                f"{entry.name}: interrupted; what is finished is kept, the same command goes on"
            ) from None
        except OSError as error:
            raise StudyFailed(f"{entry.name}: {error.filename or here}: {error.strerror or error}; what is finished is "
                              "kept, the same command goes on") from error  # fmt: skip
        if is_remote(place):
            upload(here / entry.name, f"{place}/{entry.name}", manifest.files())
        click.echo(f"{entry.name}: ready in {place}/{entry.name}")
    if place != prepared_place():
        click.echo(f"to use them there: export AGFT_PREPARED={place}")


def upload(folder: Path, address: str, files: Mapping[str, str]) -> None:
    """Send a prepared set to S3, the manifest last; files that are there with the same SHA-256 are not sent again."""
    from infra import storage

    started = said = time.monotonic()
    sizes = {file: (folder / file).stat().st_size for file in files}
    sent = 0
    for file, sha256 in files.items():
        there = storage.head(f"{address}/{file}")
        if there is None or there.sha256 != sha256:
            storage.put_file(folder / file, f"{address}/{file}", sha256=sha256)
        sent += sizes[file]
        now = time.monotonic()
        if now - said > 5:
            said, rate = now, sent / (now - started)
            say(f"{address}: {sent / 1e9:.1f} of {sum(sizes.values()) / 1e9:.1f} GB, about "
                f"{(sum(sizes.values()) - sent) / rate:,.0f} s left")  # fmt: skip
    storage.put_file(folder / "manifest.json", f"{address}/manifest.json")


def verify_datasets(names: Sequence[str]) -> list[str]:
    """What is wrong with prepared sets, every byte read (in S3: what storage says of every object)."""
    place, found = prepared_place(), []
    for entry in _entries(names):
        wrong = _faults_in_s3(f"{place}/{entry.name}", entry) if is_remote(place) else _faults(Path(place), entry)
        found += wrong
        if not wrong:
            click.echo(f"{entry.name}: {entry.num_images:,} images, {entry.num_classes} classes, as they should be")
    return found


def _faults(place: Path, entry: DatasetEntry) -> list[str]:
    from trainers.data.prepare import Progress
    from trainers.data.shards import faults

    progress = Progress(entry.name, entry.num_images, say)

    def at(images: int) -> None:
        progress(progress.done + images, 0)

    return faults(place / entry.name, entry, progress=at)


def _faults_in_s3(address: str, entry: DatasetEntry) -> list[str]:
    from infra import storage
    from study.sources import fetch_data
    from trainers.data.shards import MANIFEST, differences, read_manifest

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
