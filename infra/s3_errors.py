"""S3 addresses, and what boto3 raises about them as our own errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from infra.errors import ChecksumMismatch, Conflict, Missing, ServiceError, UserError

__all__ = ["s3_errors", "split_uri"]

MISSING_CODES = ("404", "NoSuchKey", "NotFound")
CONFLICT_CODES = ("412", "PreconditionFailed", "ConditionalRequestConflict")
REFUSED_CODES = ("403", "401", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden")


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
