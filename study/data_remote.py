"""Prepared datasets in S3: what is there, sending one, and whether it is as it should be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from infra import storage
from study.sources import fetch_data
from trainers.data import DatasetEntry
from trainers.data.progress import Progress, bytes_done
from trainers.data.shards import MANIFEST, differences, read_manifest

__all__ = ["faults_in_s3", "prepared_in_s3", "upload"]

Say = Callable[[str], None]


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
