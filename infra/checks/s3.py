"""Whether S3 can be used: put, get, list, delete, and conditional puts that race. Leaves nothing behind."""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, SSLError

from infra.checks.diagnosis import Diagnosis, Failed, check, failed, ok, unless_proxy, warning
from infra.errors import Away, ServiceError
from infra.s3 import KEYS_REMEDY, UNSUPPORTED, impatient_client, lacking_keys, s3_errors, said

DOCTOR_PREFIX = ".agft/doctor"
S3 = "S3"
CONDITIONS = "S3 conditional puts"
CLOCK = "clock"
REFUSED = (409, 412)
AGAIN_SECONDS = (0.5, 2.0)
SKEW_WARNING_SECONDS, SKEW_FAILED_SECONDS = 5.0, 120.0  # S3 refuses requests at 900 s
PROMOTION = "promotion is refused on this store: two at once could both become champion. Use one that honours "
REMEDIES = {
    "InvalidAccessKeyId": ("the store does not know the access key", "set AWS_ACCESS_KEY_ID to a key of this store"),
    "SignatureDoesNotMatch": (
        "the secret key is wrong",
        "set AWS_SECRET_ACCESS_KEY to the one that belongs to the key",
    ),
    "RequestTimeTooSkewed": ("the clock here is wrong", "set this machine's clock (chrony or systemd-timesyncd)"),
    "AuthorizationHeaderMalformed": ("the region is wrong", "set AWS_REGION to the bucket's region"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_REGION and AWS_ENDPOINT_URL to the bucket's"),
    "AccessDenied": (
        "the key may not do this",
        "grant s3:GetObject, PutObject, DeleteObject and ListBucket on the bucket",
    ),
    "QuotaExceeded": ("the quota is used up", "raise the quota, or delete studies (`agft delete`)"),
    "XMinioStorageFull": ("the store's disk is full", "free space on the store"),
    "InternalError": ("the store fails", "look at its log; a full disk does this"),
}


@check
def check_s3(bucket: str) -> Iterator[Diagnosis]:
    """Every step on an object of our own below `.agft/doctor/`; the first that fails ends it."""
    if lacking := lacking_keys():
        raise Failed(S3, lacking[0].partition("; ")[0], KEYS_REMEDY)
    client = impatient_client()
    endpoint = client.meta.endpoint_url
    base = f"{DOCTOR_PREFIX}/{secrets.token_hex(8)}"
    key, body, step, date = f"{base}/object", secrets.token_bytes(64), "put", ""
    try:
        answer, _ = _put(client, body, Bucket=bucket, Key=key)
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        heard = time.time()
        step = "get"
        if client.get_object(Bucket=bucket, Key=key)["Body"].read() != body:
            raise Failed(S3, f"{endpoint}: other bytes came back than were put", "do not use this store")
        step = "list"
        listed = client.list_objects_v2(Bucket=bucket, Prefix=f"{base}/").get("Contents", [])
        if [entry["Key"] for entry in listed] != [key]:
            raise Failed(S3, f"{endpoint}: a listing lacks what was just put", "use a store with consistent listings")
        conditions = conditional_puts(client, bucket, base)
        step = "delete"
        client.delete_object(Bucket=bucket, Key=key)
        if client.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents"):
            raise Failed(S3, f"{endpoint}: a deleted object is still listed", "switch object locks off for the bucket")
    except ClientError as error:
        raise _refused(error, step, endpoint, bucket) from None
    except Away as error:
        raise Failed(S3, str(error), "the store is busy, or what stands before it: once more") from None
    except RecursionError:  # botocore (1.40) follows a redirection to the same place for ever
        remedy = "set AWS_ENDPOINT_URL and AWS_REGION to the bucket's"
        raise Failed(S3, f"{endpoint} redirects to another place", remedy) from None
    except SSLError as error:
        reason = _short(error).rpartition(": ")[2]
        remedy = (
            "write http:// or https:// in AWS_ENDPOINT_URL as the store speaks it; for a certificate of your own set "
        )
        raise Failed(
            S3, f"{endpoint}: no encrypted connection: {reason}", f"{remedy}AWS_CA_BUNDLE to its file"
        ) from None
    except BotoCoreError as error:
        reason = _short(error).partition(': "http')[0]
        remedy = "start the store, or set AWS_ENDPOINT_URL; for embedded services: agft stack up"
        remedy = unless_proxy(endpoint, remedy)
        raise Failed(S3, f"{endpoint} does not answer: {reason}", remedy) from None
    finally:
        _clean(client, bucket, base)
    yield ok(S3, f"{endpoint}, bucket {bucket}: put, get, list, delete")
    yield from conditions
    if date:
        yield clock_finding("S3", parsedate_to_datetime(date).timestamp() + 0.5 - heard, precision=1.0)


def _refused(error: ClientError, step: str, endpoint: str, bucket: str) -> Failed:
    code = error.response.get("Error", {}).get("Code", "")
    if not error.response.get("Error", {}).get("Message") and code.isdigit():
        remedy = unless_proxy(endpoint, "set AWS_ENDPOINT_URL to the store's address")
        return Failed(S3, f"{endpoint} answers ({code}), but not as S3 does", remedy)
    if code == "NoSuchBucket":
        return Failed(
            S3, f"{endpoint}: there is no bucket {bucket!r}", "create it, or set AGFT_BUCKET to one that is there"
        )
    cause, remedy = REMEDIES.get(code, (_short(error), "see the store's documentation of this code"))
    return Failed(S3, f"{endpoint}: {step} in bucket {bucket!r}: {cause} ({code})", remedy)


def conditional_puts(client: Any, bucket: str, base: str) -> list[Diagnosis]:
    """Two racing `If-None-Match: *` and two racing `If-Match`: each time exactly one may win."""
    problems = []
    _, seal = _put(client, b"0", Bucket=bucket, Key=f"{base}/object")

    def put(**condition: str) -> Any:
        body = secrets.token_bytes(8)
        return client.put_object(Bucket=bucket, Key=f"{base}/race", Body=body, **_sealed(body, seal), **condition)

    first = _race(lambda: put(IfNoneMatch="*"))
    if problem := _problem(first, "If-None-Match: *"):
        problems.append(problem)
    etag = said(f"s3://{bucket}", put(), "ETag")
    second = _race(lambda: put(IfMatch=etag))
    if problem := _problem(second, "If-Match"):
        problems.append(problem)
    if problems:
        return [failed(CONDITIONS, "; ".join(problems), f"{PROMOTION}If-None-Match and If-Match on PutObject")]
    return [ok(CONDITIONS, "of two that race, one wins (If-None-Match, If-Match): promotion is safe")]


SEALS = {"ChecksumSHA256": hashlib.sha256, "ContentMD5": hashlib.md5}


def _sealed(body: bytes, seal: str) -> dict[str, str]:
    return {seal: base64.b64encode(SEALS[seal](body).digest()).decode()}


def _put(client: Any, body: bytes, **place: str) -> tuple[Any, str]:
    """As `infra.storage` puts, with the checksum that the store takes; the answer, and which one that is."""
    sha256, md5 = SEALS
    try:
        return client.put_object(Body=body, **_sealed(body, sha256), **place), sha256
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (400, 501):
            raise
    return client.put_object(Body=body, **_sealed(body, md5), **place), md5


def require_conditional_puts(bucket: str) -> None:
    """`ServiceError` unless the store lets exactly one of two racing puts win; for what must not happen twice.

    `Away` where it has said neither, though asked a few times.
    """
    client = impatient_client()
    for pause in (*AGAIN_SECONDS, None):
        base = f"{DOCTOR_PREFIX}/{secrets.token_hex(8)}"
        try:
            with s3_errors(f"s3://{bucket}/{base}"):
                [row] = conditional_puts(client, bucket, base)
            break
        except Away:
            if pause is None:
                raise
            time.sleep(pause)
        finally:
            _clean(client, bucket, base)
    if row.state != "ok":
        raise ServiceError(f"S3 at {client.meta.endpoint_url}: {row.detail}; {row.remedy}")


def _race(put: Callable[[], Any]) -> list[int]:
    """HTTP status of two puts that start at the same moment; `Away` where that says nothing about conditions."""
    start, statuses = threading.Barrier(2), []

    def run() -> None:
        start.wait(timeout=5)
        try:
            statuses.append(int(put()["ResponseMetadata"]["HTTPStatusCode"]))
        except ClientError as error:
            statuses.append(int(error.response["ResponseMetadata"]["HTTPStatusCode"]))
        except BotoCoreError:
            statuses.append(0)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    if len(statuses) < 2 or not {*statuses} <= {200, *REFUSED, *UNSUPPORTED} or {*statuses} <= {*REFUSED}:
        raise Away(f"two puts at once were answered {_named(statuses)}")
    return sorted(statuses)


def _named(statuses: list[int]) -> str:
    return " and ".join(str(each or "by a broken connection") for each in statuses) or "not at all"


def _problem(statuses: list[int], condition: str) -> str:
    if statuses[0] == 200 and statuses[1] in REFUSED:
        return ""
    if statuses == [200, 200]:
        return f"{condition} is ignored: both of two puts succeeded"
    return f"{condition}: two puts were answered {_named(statuses)}"


def clock_finding(server: str, ahead_seconds: float, *, precision: float) -> Diagnosis:
    """What a difference between a server's clock and ours (positive: theirs is later) means."""
    off = max(0.0, abs(ahead_seconds) - precision)
    word = "ahead of" if ahead_seconds > 0 else "behind"
    text = f"{server}'s clock is {abs(ahead_seconds):.0f} s {word} this machine's"
    remedy = "set both clocks (chrony or systemd-timesyncd): S3 refuses requests that are 15 min off, and times in "
    remedy += "MLflow and reports would be wrong"
    if off > SKEW_FAILED_SECONDS:
        return failed(CLOCK, text, remedy)
    if off > SKEW_WARNING_SECONDS:
        return warning(CLOCK, text, remedy)
    return ok(CLOCK, f"{server}'s agrees with this machine's to {max(precision, abs(ahead_seconds)):.1f} s")


def _clean(client: Any, bucket: str, base: str) -> None:
    for name in ("object", "race"):
        try:
            client.delete_object(Bucket=bucket, Key=f"{base}/{name}")
        except (ClientError, BotoCoreError):
            continue  # what made this fail has been reported
        except RecursionError:
            return


def _short(error: object) -> str:
    return " ".join(str(error).split())[:250]
