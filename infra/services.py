"""Addresses and credentials of the services that a study uses: one value, however they were started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import UserError

DEFAULT_BUCKET = "agft"
DEFAULT_REGION = "us-east-1"

# Any of these says "I bring my own services"; then every row of REQUIRED must be there.
ANNOUNCING = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
# Any of these says that S3 can be reached, if only for reading.
NAMING_STORAGE = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
REQUIRED: tuple[tuple[str, ...], ...] = (
    ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
    ("AWS_ACCESS_KEY_ID",),
    ("AWS_SECRET_ACCESS_KEY",),
    ("MLFLOW_TRACKING_URI",),
    ("AGFT_BUCKET",),
)
MLFLOW_USER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True)
class Services:
    """Where bytes and runs go. Secrets are kept out of `repr`, so out of logs and tracebacks."""

    s3_endpoint: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    mlflow_uri: str
    mlflow_username: str
    mlflow_password: str = field(repr=False)
    home: Path | None = None  # None: the services are not ours

    def environment(self) -> dict[str, str]:
        """Variables that boto3, pyarrow, Ray and MLflow read. Holds secrets: give it to processes, never to a log."""
        variables = {
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "AGFT_BUCKET": self.bucket,
        }
        if self.mlflow_username:
            variables["MLFLOW_TRACKING_USERNAME"] = self.mlflow_username
            variables["MLFLOW_TRACKING_PASSWORD"] = self.mlflow_password
        return variables


def default_home(environ: Mapping[str, str]) -> Path:
    """`AGFT_HOME`, or `~/.agft`: an absolute path, not yet created."""
    return Path(environ.get("AGFT_HOME") or "~/.agft").expanduser().resolve()


def services_from_environment(environ: Mapping[str, str]) -> Services | None:
    """The services that the environment names, or None when it names none.

    All or nothing: one address without the rest is a `UserError` that lists what is missing. Only addresses count
    as a request; AWS keys alone are often there for other reasons.
    """
    found = [name for name in ANNOUNCING if environ.get(name)]
    if not found:
        return None
    if missing := missing_variables(environ):
        raise UserError(
            f"environment: {', '.join(found)} given, so the study uses your services, but missing: "
            f"{', '.join(missing)}. Set all of them, or unset {', '.join(found)} to use the embedded services."
        )
    endpoint, region = s3_address(environ)
    return Services(
        s3_endpoint=endpoint or "",
        region=region,
        access_key=environ["AWS_ACCESS_KEY_ID"],
        secret_key=environ["AWS_SECRET_ACCESS_KEY"],
        bucket=environ["AGFT_BUCKET"],
        mlflow_uri=environ["MLFLOW_TRACKING_URI"],
        mlflow_username=environ.get("MLFLOW_TRACKING_USERNAME", ""),
        mlflow_password=environ.get("MLFLOW_TRACKING_PASSWORD", ""),
    )


def missing_variables(environ: Mapping[str, str]) -> list[str]:
    """What the environment lacks to name services, each as the names that would do."""
    missing = [" or ".join(names) for names in REQUIRED if not _value(environ, names)]
    user = [name for name in MLFLOW_USER if not environ.get(name)]
    return missing + user if len(user) == 1 else missing  # MLflow may do without a user, not with half of one


def _value(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


def s3_address(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """(endpoint, region) however little the environment says; no endpoint means AWS itself.

    The variable that is for S3 alone goes first, as boto3 has it.
    """
    endpoint = _value(environ, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    return endpoint or None, _value(environ, ("AWS_REGION", "AWS_DEFAULT_REGION")) or DEFAULT_REGION


def names_storage(environ: Mapping[str, str]) -> bool:
    """Whether the environment says how to reach S3, if only for reading."""
    return any(environ.get(name) for name in NAMING_STORAGE)


def use(services: Services) -> Services:
    """Point this process, and every process that it starts, at the services: boto3, MLflow and Ray read variables.

    The one place that writes them. Secrets reach other machines by their own environment alone.
    """
    os.environ.update(services.environment())
    return services
