"""Bytes in S3, addressed by full `s3://bucket/key` URIs, always with a SHA-256 beside them.

Who is asked and with which keys: `infra.s3`. Every call raises `Away` with the address and the reason when storage is
unreachable or refuses.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

from infra.errors import Away, ChecksumMismatch, Conflict, Missing, ServiceError, Unsupported, UserError
from infra.s3 import LISTING, attempts, s3_errors, said
from infra.s3 import client as client
from infra.s3 import split_uri as split_uri

SINGLE_PUT_BYTES = 5_000_000_000  # S3 takes no larger object in one request
CHUNK_BYTES = 8 << 20
SHA256_KEY, WRITE_KEY = "sha256", "write-id"  # object metadata
REREAD_SECONDS = (0.2, 0.5)

Done = TypeVar("Done")


@dataclass(frozen=True)
class StoredObject:
    """What storage says about an object. `sha256` is hex, or None if it was not stored by us (or in a listing).

    `modified` is storage's own clock; only a listing has it.
    """

    uri: str
    sha256: str | None
    size: int
    etag: str
    modified: datetime | None = None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_file(path: Path, uri: str, *, sha256: str | None = None, if_absent: bool = False) -> StoredObject:
    """Upload a file; storage itself checks the bytes against `sha256` (computed when not given).

    `if_absent` raises `Conflict` if the object exists, atomically up to 5 GB; above, the test precedes the upload.
    """
    size, digest = path.stat().st_size, sha256 or hash_file(path)
    if size <= SINGLE_PUT_BYTES:
        with open(path, "rb") as file:
            etag = _put(uri, file, digest, if_absent=if_absent, if_match=None)
        return StoredObject(uri, digest, size, etag)
    if if_absent and head(uri):
        raise Conflict(f"{uri}: another writer was first")
    if hash_file(path) != digest:
        raise ChecksumMismatch(f"{path}: its SHA-256 is not {digest}")
    bucket, key = split_uri(uri)
    with s3_errors(uri):
        client().upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {SHA256_KEY: digest}})
    stored = head(uri)
    if stored is None or stored.size != size:
        raise ChecksumMismatch(f"{uri}: {size} bytes were sent, {stored.size if stored else 0} are there")
    return stored


def put_bytes(uri: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
    """Write an object and return its ETag.

    With `if_match` only over the version that has this ETag, with `if_absent` only where nothing is; `Conflict` if
    another writer was first. A retry of our own request, whose answer was lost, is not mistaken for a conflict. A store
    that knows no conditions ignores them, or says so (`Unsupported`).
    """
    return _put(uri, data, hashlib.sha256(data).hexdigest(), if_absent=if_absent, if_match=if_match)


def put_json(uri: str, value: Any, *, if_match: str | None = None, if_absent: bool = False) -> str:
    """`put_bytes` of sorted, indented JSON; NaN is refused."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    return put_bytes(uri, text.encode(), if_match=if_match, if_absent=if_absent)


def _put(uri: str, body: Any, sha256: str, *, if_absent: bool, if_match: str | None) -> str:
    bucket, key = split_uri(uri)
    write_id = uuid.uuid4().hex
    condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
    if if_match is not None:
        condition["IfMatch"] = if_match

    def put(checksum: dict[str, Any]) -> Any:
        with s3_errors(uri):
            return client().put_object(
                Bucket=bucket,
                Key=key,
                Body=body,
                Metadata={SHA256_KEY: sha256, WRITE_KEY: write_id},
                **checksum,
                **condition,
            )

    try:
        try:
            answer = put({"ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode()})
        except Unsupported:  # perhaps the checksum: the older header, which every store knows
            answer = put({"ContentMD5": _md5(body, sha256)})
        return str(said(uri, answer, "ETag"))
    except ChecksumMismatch as error:
        _md5(body, sha256)  # raises it where the bytes are others than was said
        raise Away(f"{uri}: the bytes were damaged on the way") from error
    except Conflict:
        there = _head(uri)  # an earlier attempt of ours may have gone through without an answer
        if there is not None and there["Metadata"].get(WRITE_KEY) == write_id:
            return str(said(uri, there, "ETag"))
        raise


def _md5(body: Any, sha256: str) -> str:
    """For the header Content-MD5; `ChecksumMismatch` if the body has not the SHA-256 that is said of it."""
    content = io.BytesIO(body) if isinstance(body, bytes) else body
    content.seek(0)
    digest, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while chunk := content.read(CHUNK_BYTES):
        digest.update(chunk)
        md5.update(chunk)
    content.seek(0)
    if digest.hexdigest() != sha256:
        raise ChecksumMismatch(f"the bytes to be sent do not have the SHA-256 {sha256}")
    return base64.b64encode(md5.digest()).decode()


def head(uri: str) -> StoredObject | None:
    """What is stored at `uri`, or None."""
    answer = _head(uri)
    if answer is None:
        return None
    size, etag = said(uri, answer, "ContentLength"), said(uri, answer, "ETag")
    return StoredObject(uri, answer["Metadata"].get(SHA256_KEY), size, etag)


def _head(uri: str) -> Any | None:
    bucket, key = split_uri(uri)
    try:
        with s3_errors(uri):
            return client().head_object(Bucket=bucket, Key=key)
    except Missing:
        return None


def read_whole(read: Callable[[], Done]) -> Done:
    """What `read` gives, again where its bytes are not the promised ones: the way may have damaged them."""
    for pause in REREAD_SECONDS:
        try:
            return read()
        except ChecksumMismatch:
            time.sleep(pause)
    return read()


def get_bytes(uri: str) -> tuple[bytes, str] | None:
    """(content, ETag), checked against the stored SHA-256, or None when there is no such object."""
    return read_whole(lambda: _get_bytes(uri))


def _get_bytes(uri: str) -> tuple[bytes, str] | None:
    try:
        data, answer = _with_body(uri, lambda answer: (answer["Body"].read(), answer))
    except Missing:
        return None
    expected = answer["Metadata"].get(SHA256_KEY)
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise ChecksumMismatch(f"{uri}: the bytes received do not have the stored SHA-256 {expected}")
    return data, said(uri, answer, "ETag")


def _with_body(uri: str, use: Callable[[Any], Done]) -> Done:
    """What `use` makes of an object, which is asked for again where the answer breaks off in the middle."""
    bucket, key = split_uri(uri)
    for left in reversed(range(attempts())):
        with s3_errors(uri):
            answer = client().get_object(Bucket=bucket, Key=key)
            try:
                return use(answer)
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                if not left:
                    raise
        time.sleep(REREAD_SECONDS[0])
    raise AssertionError("there is one attempt at least")


def get_json(uri: str) -> tuple[Any, str] | None:
    """(value, ETag), or None; `ServiceError` if the object is not JSON."""
    found = get_bytes(uri)
    if found is None:
        return None
    try:
        return json.loads(found[0]), found[1]
    except ValueError as error:
        raise ServiceError(f"{uri}: not JSON: {error}") from error


def get_file(
    uri: str, path: Path, *, sha256: str | None = None, on_bytes: Callable[[int], None] | None = None
) -> StoredObject:
    """Download to `path`, which appears only complete and with the right SHA-256 (given, else the stored one).

    `sha256`: all of its digits, or the first ones. `on_bytes` is told how many bytes have come, from any thread.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / "part"
        stored = read_whole(lambda: _download(uri, temporary, sha256, on_bytes))
        temporary.replace(path)
    return stored


def _download(uri: str, path: Path, sha256: str | None, on_bytes: Callable[[int], None] | None) -> StoredObject:
    stored = head(uri)
    if stored is None:
        raise Missing(f"{uri}: no such object")
    bucket, key = split_uri(uri)
    with s3_errors(uri):
        client().download_file(bucket, key, str(path), Callback=on_bytes)
    digest, size, expected = hash_file(path), path.stat().st_size, sha256 or stored.sha256
    if size != stored.size:
        raise ChecksumMismatch(f"{uri}: {size} bytes came, {stored.size} are stored")
    if expected and not digest.startswith(expected):
        raise ChecksumMismatch(f"{uri}: has SHA-256 {digest}, expected {expected}")
    return StoredObject(uri, digest, size, stored.etag)


def copy(source: str, destination: str) -> StoredObject:
    """Copy inside storage, then read the copy back and compare; a copy that differs is deleted and reported."""
    stored = head(source)
    if stored is None:
        raise Missing(f"{source}: no such object")
    (bucket, key), (to_bucket, to_key) = split_uri(source), split_uri(destination)
    with s3_errors(destination):
        client().copy({"Bucket": bucket, "Key": key}, to_bucket, to_key)

    def compared() -> str:
        expected = stored.sha256 or hash_object(source)
        if hash_object(destination) != expected:
            raise ChecksumMismatch(f"{destination}: the copy of {source} does not have its SHA-256 {expected}")
        return expected

    try:
        sha256 = read_whole(compared)
    except ChecksumMismatch:
        delete(destination)
        raise
    copied = head(destination)
    if copied is None:
        raise Missing(f"{destination}: gone right after it was copied")
    return StoredObject(destination, sha256, copied.size, copied.etag)


def hash_object(uri: str) -> str:
    """SHA-256 of an object's bytes, read for it."""

    def hashed(answer: Any) -> str:
        digest = hashlib.sha256()
        for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()

    return _with_body(uri, hashed)


def list_objects(prefix_uri: str) -> list[StoredObject]:
    """Objects below `prefix_uri/`, by key; the zero-byte folder marks that pyarrow writes are left out."""
    bucket, prefix = split_uri(prefix_uri.rstrip("/") + "/")
    found = []
    with s3_errors(prefix_uri):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            said(prefix_uri, page, *LISTING)
            for entry in page.get("Contents", []):
                if entry["Size"] or not entry["Key"].endswith("/"):
                    uri, when = f"s3://{bucket}/{entry['Key']}", entry.get("LastModified")
                    found.append(StoredObject(uri, None, entry["Size"], entry["ETag"], when))
    return found


def delete(uri: str) -> None:
    """Delete one object; none there is fine."""
    bucket, key = split_uri(uri)
    with s3_errors(uri):
        client().delete_object(Bucket=bucket, Key=key)


def delete_prefix(prefix_uri: str) -> int:
    """Delete everything below `prefix_uri/` and return how many objects that were; never a whole bucket."""
    bucket, prefix = split_uri(prefix_uri.rstrip("/") + "/")
    if not prefix:
        raise UserError(f"{prefix_uri!r}: refusing to delete a whole bucket")
    count = 0
    with s3_errors(prefix_uri):
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            said(prefix_uri, page, *LISTING)
            keys = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
            if not keys:
                continue
            _delete_all(prefix_uri, bucket, keys)
            count += len(keys)
    return count


def _delete_all(prefix_uri: str, bucket: str, keys: Sequence[Any]) -> None:
    try:
        with s3_errors(prefix_uri):
            answer = client().delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    except Unsupported:  # some stores do not know this request, or not with the checksum that it must have
        for each in keys:
            delete(f"s3://{bucket}/{each['Key']}")
        return
    if errors := answer.get("Errors"):
        raise ServiceError(f"{prefix_uri}: {len(errors)} objects were not deleted: {errors[0]}")
