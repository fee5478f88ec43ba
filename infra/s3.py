"""The connection to S3: who is asked, with whose keys, and what boto3 raises as our own errors.

Addresses come from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`), keys from boto3's own chain: variables, a
profile, a role, a file. Keys that expire are fetched again by boto3; refused ones are looked for anew with the next
request, so a file that was written again is read again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from http.client import responses
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from boto3.exceptions import Boto3Error, S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from s3transfer import exceptions as transfer

from infra.errors import (  # fmt: skip
    FULL,
    Away,
    ChecksumMismatch,
    Conflict,
    Missing,
    NoBucket,
    NoChecksum,
    ServiceError,
    Unsupported,
    UserError,
)
from infra.services import CHAIN, LOOPBACK, s3_address

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 5
_attempts: ContextVar[int] = ContextVar("attempts", default=ATTEMPTS)

MISSING_CODES = ("404", "NoSuchKey", "NotFound")
OF_ONE_OBJECT = ("GetObject", "HeadObject")  # what a 404 without a name means that an object is not there
CONFLICT_CODES = ("412", "PreconditionFailed", "ConditionalRequestConflict")
# Keys that are wrong, have expired, or may not do this; of a status in REFUSED any code is one, but these.
REFUSED, NOT_REFUSED = (401, 403, 407, 511), ("InvalidObjectState",)
REFUSED_CODES = (
    "400", "401", "403", "AccessDenied", "AccountProblem", "AllAccessDisabled", "ExpiredToken", "ExpiredTokenException",
    "Forbidden", "ForbiddenException", "IDPCommunicationError", "IDPRejectedClaim", "InvalidAccessKeyId",
    "InvalidIdentityToken", "InvalidToken", "NotSignedUp", "RequestExpired", "RequestTimeTooSkewed",
    "SignatureDoesNotMatch", "TokenRefreshRequired", "Unauthorized", "UnauthorizedException",
)  # fmt: skip
# By which boto3 finds keys: asked of others than S3.
KEY_OPERATIONS = ("AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "CreateToken", "GetRoleCredentials")
KEY_MODULES = ("botocore.credentials", "botocore.tokens", "botocore.configloader")
# What boto3 says when it fails; of s3transfer it translates a few errors only.
OF_BOTO3 = (
    ClientError, BotoCoreError, Boto3Error, RecursionError, transfer.RetriesExceededError, transfer.S3CopyFailedError,
    transfer.S3DownloadFailedError, transfer.S3UploadFailedError, transfer.S3ValidationError,
)  # fmt: skip
UNSENT = "Invalid header value"
# Whatever their status: some stores answer 400 or 403 to these.
AWAY_CODES = (
    "IncompleteBody", "InsufficientStorage", "InternalError", "OperationAborted", "QuotaExceeded", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "XAmzContentSHA256Mismatch",
    "XMinioAdminBucketQuotaExceeded", "XMinioServerNotInitialized", "XMinioStorageFull",
)  # fmt: skip
UNSUPPORTED, UNSUPPORTED_CODES = (405, 501), ("MissingContentMD5",)
AWAY_STATUSES = (408, 423, 425, 429, 499)
KEYS_OF_THE_STORE = "KMS."  # what codes begin with that are about those which encrypt objects
TOO_LARGE = "takes no object of this size; raise the limit of the store, or of the proxy before it"
REMEDIES = {
    "AuthorizationHeaderMalformed": "; set AWS_REGION to the bucket's region",
    "PermanentRedirect": "; set AWS_REGION and AWS_ENDPOINT_URL to the bucket's",
}
LISTING = ("KeyCount", "IsTruncated", "Name", "Contents")  # a listing has one of them, also of nothing
KEYS_REMEDY = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role"


def client() -> S3Client:
    """A shared, thread-safe client for the services in the environment; 5 attempts with backoff for each request."""
    names = ("AWS_SESSION_TOKEN", *CHAIN)
    return _client(os.getpid(), _attempts.get(), *s3_address(os.environ), *(os.environ.get(name) for name in names))


@functools.lru_cache(maxsize=8)
def _client(_pid: int, attempts: int, endpoint: str | None, region: str, *_keys: str | None) -> S3Client:
    retries: Any = {"mode": "standard", "total_max_attempts": attempts}
    return _connect(endpoint, region, retries=retries, connect_timeout=5, read_timeout=60)


def impatient_client() -> S3Client:
    """A client of its own that asks once, for who wants to hear soon that storage does not answer."""
    endpoint, region = s3_address(os.environ)
    return _connect(endpoint, region, retries={"total_max_attempts": 1}, connect_timeout=4, read_timeout=10)


def _connect(endpoint: str | None, region: str, **settings: Any) -> S3Client:
    if urlsplit(endpoint or "").hostname in LOOPBACK:
        settings["proxies"] = {}  # what runs here is never reached by a proxy
    # Checksums of boto3's own choice go by headers that some stores refuse; we send ours.
    asked: Any = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint, region_name=region, config=Config(**asked, **settings)
    )


def lacking_keys() -> list[str]:
    """Why this machine has no keys for S3, or nothing; S3 itself is not asked."""
    try:
        return [] if boto3.session.Session().get_credentials() else [f"no S3 credentials; {KEYS_REMEDY}"]
    except Exception as error:
        return [_of_keys(error) or f"no S3 credentials: {type(error).__name__}"]


def _of_keys(error: Exception) -> str:
    """What is wrong where keys are looked for, perhaps only now: their file may be written this moment. Else nothing.

    What a process has printed that was to give keys is not shown: it may be one.
    """
    if isinstance(error, ProfileNotFound):
        try:
            known = ", ".join(sorted(botocore.session.Session().full_config["profiles"])) or "none"
        except (BotoCoreError, OSError, ValueError):
            known = "none that can be read"
        return f"AWS_PROFILE = {os.environ.get('AWS_PROFILE')!r}: no such profile; known: {known}"
    frames = {frame.f_globals.get("__name__") for frame, _line in traceback.walk_tb(error.__traceback__)}
    if frames.isdisjoint(KEY_MODULES) or isinstance(error, ClientError):
        return ""
    shown = isinstance(error, BotoCoreError) and getattr(error, "kwargs", {}).get("provider") != "custom-process"
    if shown:
        return f"no S3 credentials: {error}; {KEYS_REMEDY}"
    return f"no S3 credentials: {type(error).__name__} in what gives them; try the profile's credential_process by hand"


@contextlib.contextmanager
def one_attempt() -> Iterator[None]:
    """In this block every request is made once, by who does the repeating himself."""
    before = _attempts.set(1)
    try:
        yield
    finally:
        _attempts.reset(before)


def probe(bucket: str) -> None:
    """Ask for one name of the bucket; `ServiceError`, mostly `Away`, within some 15 s where S3 does not answer."""
    with s3_errors(f"s3://{bucket}"):
        said(f"s3://{bucket}", impatient_client().list_objects_v2(Bucket=bucket, MaxKeys=1), *LISTING)


def attempts() -> int:
    """How often a request is made that fails."""
    return _attempts.get()


def said(uri: str, answer: Mapping[str, Any], *names: str) -> Any:
    """The first of these parts of an answer, one of which S3 never leaves out; `Away` where another server answers."""
    for name in names:
        if name in answer:
            return answer[name]
    endpoint = s3_address(os.environ)[0] or "AWS"
    raise Away(f"{uri}: {endpoint} answers, but not as S3 does (no {' or '.join(names)})")


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` as (bucket, key); the key may be empty. Anything else is a `UserError`."""
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not separator or not bucket:
        raise UserError(f"{uri!r}: expected s3://bucket/key")
    return bucket, key


def is_away(error: BaseException) -> bool:
    """Whether S3, or the disk here, cannot do now what it could do later: no fault of who asked."""
    return isinstance(error, Away) or (isinstance(error, OSError) and error.errno in FULL)


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises about `uri` into our errors."""
    try:
        yield
    except (ServiceError, UserError):
        raise
    except Exception as error:
        if lacking := _of_keys(error):
            raise Away(f"{uri}: {lacking}") from None
        if UNSENT in str(error):  # with the value, which is a secret
            raise Away(
                f"{uri}: the S3 credentials hold a blank, a line's end or another character that no key has"
            ) from None
        if not isinstance(error, OF_BOTO3):
            raise
        raise _ours(uri, error) from error


def _ours(uri: str, error: BaseException) -> ServiceError | UserError:
    endpoint = s3_address(os.environ)[0] or "AWS"
    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, ClientError | BotoCoreError):
        return _ours(uri, error.__context__)  # boto3 keeps the cause as text
    if isinstance(error, ParamValidationError):
        return UserError(f"{uri}: {error}")
    if isinstance(error, ClientError):
        return _answered(uri, endpoint, error)
    if isinstance(error, RecursionError):  # botocore (1.40) follows a redirection to the same place for ever
        reason = "it redirects to another place; set AWS_ENDPOINT_URL and AWS_REGION to the bucket's"
        return Away(f"{uri}: S3 at {endpoint} cannot be used: {reason}")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return Away(f"{uri}: no S3 credentials; {KEYS_REMEDY}")
    return Away(f"{uri}: S3 at {endpoint} cannot be used: {getattr(error, 'last_exception', error)}")


def _answered(uri: str, endpoint: str, error: ClientError) -> ServiceError:
    """Of what S3 itself has said, or who answers in its place."""
    details: Any = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code, message = details.get("Code") or "", details.get("Message") or responses.get(status) or str(error)
    said = f"{code or f'HTTP {status}'}: {message}"
    if error.operation_name in KEY_OPERATIONS:
        return Away(f"{uri}: the keys for S3 cannot be had ({error.operation_name}: {said})")
    if code in CONFLICT_CODES:
        return Conflict(f"{uri}: another writer was first")
    if code == "NoSuchKey" or (code in MISSING_CODES and error.operation_name in OF_ONE_OBJECT):
        return Missing(f"{uri}: no such object")
    if code == "NoSuchBucket":
        return NoBucket(f"{uri}: no such bucket {split_uri(uri)[0]!r} in S3 at {endpoint}")
    if status == 404:
        return Away(
            f"{uri}: S3 at {endpoint} cannot be used: the bucket is not there, or another server answers ({said})"
        )
    if code == "BadDigest":
        return ChecksumMismatch(f"{uri}: the bytes sent do not have the SHA-256 that was given")
    if status == 413 or code == "EntityTooLarge":
        return ServiceError(f"{uri}: S3 at {endpoint} {TOO_LARGE} ({said})")
    away = code in AWAY_CODES or code.startswith(KEYS_OF_THE_STORE)
    words = " ".join(
        each for each in details.values() if isinstance(each, str)
    )  # AWS names a header beside the message
    if not away and status in (400, 501) and "checksum" in words.lower():
        return NoChecksum(f"{uri}: S3 at {endpoint} takes no checksum ({said})")
    if not away and (code in REFUSED_CODES or (status in REFUSED and code not in NOT_REFUSED)):
        _client.cache_clear()  # the next request looks for keys again
        return Away(f"{uri}: S3 at {endpoint} refuses the credentials or the access ({said})")
    reason = f"{uri}: S3 at {endpoint} failed ({said}){REMEDIES.get(code, '')}"
    if status in UNSUPPORTED or code in UNSUPPORTED_CODES:
        return Unsupported(reason)
    away = away or status in AWAY_STATUSES or status >= 500 or 300 <= status < 400
    return Away(reason) if away else ServiceError(reason)
