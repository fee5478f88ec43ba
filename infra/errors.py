"""Errors of the infrastructure: what a user can put right, and what a service did wrong.

ValueError
└── UserError                 one clear message, exit code 2, no traceback
RuntimeError
└── ServiceError              a service is missing, refuses, or does not answer: exit code 1
    ├── Away                  it does not answer, is full, or refuses the keys: later it may do what was asked
    │   └── NoBucket          the bucket is not there
    ├── Unsupported           the store does not know such a request
    │   └── NoChecksum        it knows no SHA-256 of requests
    ├── Conflict              a conditional write lost the race against another writer
    ├── Missing               the object is not there
    └── ChecksumMismatch      the bytes are not the ones that were promised
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import IO

FULL = (errno.ENOSPC, errno.EDQUOT)  # of an OSError: the disk here is full, or our share of it
GONE = (errno.EPIPE, errno.EIO)  # of what is printed: whoever read it has left, the terminal was closed


@contextlib.contextmanager
def while_full() -> Iterator[None]:
    """Inside, a full disk is no error: what is printed or logged is no reason to end anything."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


@contextlib.contextmanager
def while_unread(stream: IO[str]) -> Iterator[None]:
    """Inside, it is no error either that nobody reads `stream` any more: what is printed goes nowhere from now on."""
    try:
        with while_full():
            yield
    except OSError as error:
        if error.errno not in GONE:
            raise
        into_nowhere(stream)


def into_nowhere(stream: IO[str]) -> None:
    """What is left of it, and comes, goes nowhere: Python writes that at the exit, and would fail once more."""
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor, or none any more
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class UserError(ValueError):
    """The input or the environment is wrong. The message names the variable, the value and the rule."""


class ServiceError(RuntimeError):
    """Storage, tracking or the cluster cannot do what was asked. The message names the service and the reason."""


class Away(ServiceError):
    """Nothing is wrong with what was asked: the service is unreachable, fails, is full, or refuses the keys."""


class NoBucket(Away):
    """The bucket is not there: it may be made, or what deletes it may bring it back."""


class Unsupported(ServiceError):
    """The store does not know a request, or what was asked with it."""


class NoChecksum(Unsupported):
    """The store refuses the header with the bytes' SHA-256."""


class Conflict(ServiceError):
    """A conditional write was refused: the object exists already, or is not the one that was read."""


class Missing(ServiceError):
    """An object that should be in storage is not there."""


class ChecksumMismatch(ServiceError):
    """Bytes in storage or on the way differ from their SHA-256; nothing was kept."""
