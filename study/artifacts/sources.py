"""What lies at s3:// addresses, for code that knows no S3: weights (kept here, checked every time) and prepared sets.

<cache>/weights/<content>/NAME: <content> is the object's SHA-256 where storage knows it, else made of address and ETag,
so an object that was replaced is another entry. `<cache>` is `$AGFT_CACHE`, else `agft-study` in the user's cache
folder. What is in it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from infra import storage
from infra.errors import Missing, NoBucket
from infra.s3 import probe
from study.console import Say
from trainers.errors import MissingWeights, UserError
from trainers.files import cache_folder, locked

FOLDER_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")  # of an export: configuration, weights, tokenizer
WEIGHTS = "open_clip_model.safetensors"
LARGE_BYTES = 50_000_000


def use_s3_weights() -> None:
    """Let `load_clip` in this process take s3:// addresses. Every process that loads models calls it once."""
    from trainers.model.pretrained import FETCHERS

    FETCHERS["s3"] = fetch_weights


def use_s3_data() -> None:
    """Let `load_dataset` in this process read prepared sets in S3. Every process that loads datasets calls it once."""
    from trainers.data.prepared.remote import FETCHERS

    FETCHERS["s3"] = fetch_data


def fetch_data(uri: str, path: Path, sha256: str | None) -> bool:
    """Write the object at `uri` to `path`, checked against `sha256`; False if its bucket is there, and has none."""
    try:
        storage.get_file(uri, path, sha256=sha256)
    except Missing:
        probe(storage.split_uri(uri)[0])  # a bucket that is gone, or a proxy, answers as if only the object were
        return False
    return True


def fetch_weights(uri: str, say: Say | None = None) -> Path:
    """The file at `s3://bucket/key`, or the export folder at `s3://bucket/prefix/`, on this machine.

    Raises `MissingWeights` when it is not there, `ServiceError` when storage does not answer or bytes are not the
    promised ones.
    """
    bucket, key = storage.split_uri(uri)
    if "@" in bucket:
        raise UserError("model.pretrained: an s3:// address holds no credentials; set AWS_ACCESS_KEY_ID and its secret")
    try:
        if uri.endswith("/") or not key:
            return _folder(uri, say)
        stored = storage.head(uri)
        if stored is not None:
            return _bring(stored, _entry(_content(stored)) / Path(key).name, say)
        folder = storage.list_objects(uri)
    except (Missing, NoBucket) as error:
        if isinstance(error, NoBucket) and bucket == os.environ.get("AGFT_BUCKET"):
            raise  # the study's own, which may come back
        raise MissingWeights(f"model.pretrained: {error}") from error
    hint = f"; there is a folder of this name: write {uri}/" if folder else ""
    raise MissingWeights(f"model.pretrained: {uri}: no such object{hint}")


def _folder(uri: str, say: Say | None) -> Path:
    prefix = uri.rstrip("/") + "/"
    listed = [stored.uri for stored in storage.list_objects(prefix)]
    names = [each for each in listed if "/" not in each.removeprefix(prefix) and each.endswith(FOLDER_FILES)]
    if f"{prefix}open_clip_config.json" not in names:
        found = f"{len(listed)} objects, but no open_clip_config.json" if listed else "nothing"
        raise MissingWeights(f"model.pretrained: {uri}: no export folder: found {found}")
    stored = [each for each in map(storage.head, names) if each is not None]
    if promised := _promised(prefix):
        stored = [replace(each, sha256=promised) if each.uri == f"{prefix}{WEIGHTS}" else each for each in stored]
    folder = _entry("\n".join(f"{each.uri.removeprefix(prefix)} {_content(each)}" for each in stored))
    for each in stored:
        _bring(each, folder / each.uri.removeprefix(prefix), say)
    return folder


def _promised(prefix: str) -> str | None:
    """What a promoted version says its weights are; whoever replaced them could not rewrite that."""
    found = storage.get_json(f"{prefix}manifest.json")
    return None if found is None else (found[0].get("weights") or {}).get("sha256")


def _content(stored: storage.StoredObject) -> str:
    return stored.sha256 or f"{stored.uri} {stored.etag} {stored.size}"


def _entry(content: str) -> Path:
    return cache_folder() / "weights" / hashlib.sha256(content.encode()).hexdigest()[:32]


def _bring(stored: storage.StoredObject, path: Path, say: Say | None) -> Path:
    """`path`, with the object's bytes: kept ones if their SHA-256 is right, else downloaded."""
    note = path.with_name(f".{path.name}.sha256")  # what the bytes were, where storage does not say
    with locked(path.with_name(f".{path.name}.lock")):  # of several processes of a node, one downloads
        expected = stored.sha256 or (note.read_text() if note.is_file() else None)
        if expected and path.is_file() and storage.hash_file(path) == expected:
            return path
        if say is not None and stored.size > LARGE_BYTES:
            say(f"fetching {stored.uri} ({stored.size / 1e6:.0f} MB) ...")
        got = storage.get_file(stored.uri, path, sha256=stored.sha256)
        note.write_text(got.sha256 or "")
    return path
