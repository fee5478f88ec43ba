"""The embedded S3 after its disk was full: SeaweedFS alone would refuse for ever, so its keeper starts it again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.services import Services
from infra.stack import stack as embedded
from tests.faults.stage import fill, small_disk

FOLDERS = [f"place-{number}" for number in range(24)]  # spread over all parts of SeaweedFS's index


@dataclass(frozen=True)
class Client:
    """One attempt each, and no exception: whether it went well."""

    s3: Any
    bucket: str

    def put(self, key: str) -> bool:
        return self._done(self.s3.put_object, Key=key, Body=b"bytes") is not None

    def has(self, key: str) -> bool:
        found = self._done(self.s3.get_object, Key=key)
        return found is not None and found["Body"].read() == b"bytes"

    def _done(self, call: Callable[..., Any], **given: Any) -> Any:
        try:
            return call(Bucket=self.bucket, **given)
        except (ClientError, BotoCoreError):
            return None


def client(services: Services) -> Client:
    config = Config(retries={"total_max_attempts": 1})
    return Client(
        boto3.Session().client(
            "s3", endpoint_url=services.s3_endpoint, region_name=services.region, config=config,
            aws_access_key_id=services.access_key, aws_secret_access_key=services.secret_key,
        ),
        services.bucket,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own needs root")
def test_a_disk_that_was_full_leaves_an_s3_that_takes_everything_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 200) as disk:
        home = disk / "home"
        try:
            s3 = client(embedded.up(home, kept_up=True))
            assert all(s3.put(f"{folder}/before") for folder in FOLDERS)
            fill(disk / "full")
            refused = [folder for folder in FOLDERS if not s3.put(f"{folder}/full")]
            (disk / "full").unlink()
            assert refused
            deadline = time.monotonic() + 90
            while missing := [folder for folder in FOLDERS if not s3.put(f"{folder}/after")]:
                assert time.monotonic() < deadline, missing
                time.sleep(1)
            assert all(s3.has(f"{folder}/before") and s3.has(f"{folder}/after") for folder in FOLDERS)
            assert "seaweedfs met a full disk" in (home / "logs" / "keeper.log").read_text()
        finally:
            embedded.down(home)
