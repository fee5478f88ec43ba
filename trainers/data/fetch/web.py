"""One file from the web, in as many attempts as it takes: what has arrived is never asked for again."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from trainers.data.progress import Progress, bytes_done

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0
ATTEMPTS = 3  # in a row, of which none brought a byte
PAUSE_SECONDS = 1.0  # before the second attempt, twice as long before each further one
TEMPORARY_STATUS = {408, 425, 429, 500, 502, 503, 504}

Say = Callable[[str], None]


class Unreachable(OSError):
    """The address does not answer, or not with the file; the message has the reason."""


class _Interrupted(Exception):
    """The connection, or the server's part of it, failed; another attempt may do."""


def bring(url: str, path: Path, *, say: Say = lambda text: None) -> None:
    """`path`, with what is at `url`; goes on with `path`.part of an earlier call, killed or not.

    Raises `Unreachable`, and OSError where the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    vain = 0
    while True:
        before = part.stat().st_size
        try:
            _rest(url, part, say)
            break
        except _Interrupted as error:
            vain = vain + 1 if part.stat().st_size <= before else 0
            if vain == ATTEMPTS:
                raise Unreachable(f"{url}: {error}") from error
            time.sleep(PAUSE_SECONDS * 2 ** (vain - 1) if vain else 0)
    part.replace(path)


def _rest(url: str, part: Path, say: Say) -> None:
    """Append what `part` lacks. Returns when all is there."""
    have = part.stat().st_size
    headers = {"User-Agent": "agft-study", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies behind what is here: it is whole, or not of this file
            if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                return
            part.write_bytes(b"")
            raise _Interrupted("another file than before") from error
        if error.code in TEMPORARY_STATUS:
            raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
        raise Unreachable(f"{url}: HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise _Interrupted(str(getattr(error, "reason", error))) from error
    with answer, part.open("ab") as file:
        if answer.status == 206:
            total = _size(answer.headers.get("Content-Range", ""), have)
        else:  # a server that starts anew
            file.truncate(0)
            have, total = 0, int(answer.headers.get("Content-Length") or 0)
        _copy(answer, file, Progress(part.name.removesuffix(".part"), total, say, bytes_done), have)
        if total and file.tell() != total:
            raise _Interrupted(f"it ended after {file.tell():,} of {total:,} bytes")


def _size(content_range: str, first: int) -> int:
    """`bytes 100-999/1000` -> 1000, if it begins with byte `first`; 0 if the size is not said."""
    match = re.fullmatch(rf"bytes {first}-\d+/(\d+|\*)", content_range.strip())
    if match is None:
        raise _Interrupted(f"an answer to another question ({content_range!r})")
    return 0 if match[1] == "*" else int(match[1])


def _copy(answer: Any, file: IO[bytes], progress: Progress, kept: int) -> None:
    while True:
        try:
            chunk = answer.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        if not chunk:
            return
        file.write(chunk)
        progress(file.tell(), kept)
