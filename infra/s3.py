"""The connection to S3: one client, addresses, and what boto3 raises as our own errors."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from infra.errors import ChecksumMismatch, Conflict, Missing, ServiceError, UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["client", "s3_errors", "split_uri"]

MISSING_CODES = ("404", "NoSuchKey", "NotFound")
CONFLICT_CODES = ("412", "PreconditionFailed", "ConditionalRequestConflict")
REFUSED_CODES = ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden")


def client() -> S3Client:
    """A shared, thread-safe client for the services in the environment; 5 attempts with backoff for each request."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return _client(os.getpid(), *(os.environ.get(name) for name in (*names, "AWS_SESSION_TOKEN")))


@functools.lru_cache(maxsize=8)
def _client(
    _pid: int, s3_endpoint: str | None, endpoint: str | None, region: str | None, *_keys: str | None
) -> S3Client:
    config = Config(retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=5, read_timeout=60)
    region = region or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return boto3.session.Session().client("s3", endpoint_url=s3_endpoint or endpoint, region_name=region, config=config)


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/key` as (bucket, key); the key may be empty. Anything else is a `UserError`."""
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not separator or not bucket:
        raise UserError(f"{uri!r}: expected s3://bucket/key")
    return bucket, key


@contextlib.contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turn what boto3 raises about `uri` into our errors."""
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ServiceError(f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except ClientError as error:
        details = error.response.get("Error", {})
        code, message = details.get("Code", ""), details.get("Message", str(error))
        if code in CONFLICT_CODES:
            raise Conflict(f"{uri}: another writer was first") from error
        if code in MISSING_CODES:
            raise Missing(f"{uri}: no such object") from error
        if code == "NoSuchBucket":
            raise Missing(f"{uri}: no such bucket {split_uri(uri)[0]!r}") from error
        if code == "BadDigest":
            raise ChecksumMismatch(f"{uri}: the bytes sent do not have the SHA-256 that was given") from error
        if code in REFUSED_CODES:
            raise ServiceError(f"{uri}: S3 refuses the credentials or the access ({code}: {message})") from error
        raise ServiceError(f"{uri}: S3 failed ({code}: {message})") from error
    except (BotoCoreError, Boto3Error) as error:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        raise ServiceError(f"{uri}: S3 at {endpoint} cannot be used: {error}") from error
